"""Prompt files: one prompt a line, or JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from bcg.errors import UsageError
from bcg.text_files import read_text

_HINT = 'one prompt a line, or JSON lines such as {"prompt": "…"}'
_KEYS = ("prompt", "text")


def read_prompts(path: Path) -> list[str]:
    """Read prompts: each line that isn't blank is one.

    If the first line is a JSON object or string, every line must be: a string, or an object with ``prompt`` or
    ``text``.

    Raises:
        UsageError: The file can't be read, is no text, or holds no prompt; the message names the line.
    """
    text = read_text(path, "prompts", "are", hint=_HINT)
    if "\0" in text:
        raise UsageError(f"prompts {path} are no text: there are zero bytes in them", hint=_HINT)
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError(f"prompts {path} hold no prompt", hint=_HINT)
    if not _is_json(lines[0][1]):
        return [line for _, line in lines]
    return [_prompt_in(line, f"{path}:{number}") for number, line in lines]


def refuse_without_tokenizer(model: str, source: str) -> None:
    """Refuse prompts for a model of a source that has no tokenizer.

    Args:
        model: Its name.
        source: Where it comes from, as in `bcg.report.ModelInfo` or `bcg.model_names.ModelKind`.

    Raises:
        UsageError: It has none.
    """
    if source not in ("directory", "hub"):
        raise UsageError(
            f"prompts need a model with a tokenizer, and {model} has none",
            hint="give a Hugging Face directory or a hub id",
        )


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), (dict, str))
    except (ValueError, RecursionError):
        return False


def _prompt_in(line: str, place: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{place}: expected a prompt, got {line[:40]!r}", hint=_HINT)
    return value
