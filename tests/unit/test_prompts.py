"""Prompt files: lines of text or JSON, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcg.errors import UsageError
from bcg.prompts import read_prompts


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("one two\n\n  three \r\n", ["one two", "three"]),
        ('{"prompt": "a\\nb"}\n{"text": "c"}\n', ["a\nb", "c"]),
        ('"a"\n"b"', ["a", "b"]),
        ("{not json}\n[1]", ["{not json}", "[1]"]),
        ("12\ngrößer\u2028x", ["12", "größer\u2028x"]),
    ],
)
def test_what_is_read(tmp_path: Path, content: str, prompts: list[str]) -> None:
    assert read_prompts(write(tmp_path / "prompts", content)) == prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "^prompts .* hold no prompt$"),
        (" \n\n", "^prompts .* hold no prompt$"),
        (b"\xff\xfe", "^prompts .* are no text: invalid start byte$"),
        (b"PK\x03\x04\0\0", "^prompts .* are no text: there are zero bytes in them$"),
        ('{"prompt": "a"}\nb', "^.*:2: expected a prompt, got 'b'$"),
        ('{"prompt": "a"}\n{"question": "b"}', "^.*:2: expected a prompt, got "),
        ('{"prompt": " "}', "^.*:1: expected a prompt, got "),
    ],
)
def test_what_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_prompts(write(tmp_path / "prompts", content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^cannot read prompts .*: No such file or directory$"):
        read_prompts(tmp_path / "none")
    with pytest.raises(UsageError, match="^cannot read prompts .*: Is a directory$"):
        read_prompts(tmp_path)
