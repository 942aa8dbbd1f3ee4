"""Text that neither a terminal nor a page takes for more than text."""

from __future__ import annotations


def printable(text: str) -> str:
    """Returns text with a question mark for each character that can't be printed: one may turn the text around it."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
