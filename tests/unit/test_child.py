"""A child process that fails says where."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bcg.child import Child, ChildFailed, Failed
from bcg.errors import BcgError, UsageError

CHILD = """
import msgspec
from bcg.child import serve
from bcg.errors import UsageError


def fail(command):
    raise UsageError("wrong") if command == "use" else ValueError("broken")


serve(str, fail)
"""


@pytest.mark.parametrize(
    ("command", "kind", "message"), [("use", UsageError, "wrong"), ("break", ChildFailed, "ValueError: broken")]
)
def test_an_error_of_a_child_has_its_traceback_as_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, kind: type[BcgError], message: str
) -> None:
    (tmp_path / "failing_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(tmp_path)
    with Child("failing_child", "the child", Failed) as child, pytest.raises(kind) as raised:
        child.ask(command, msgspec.Struct)
    assert raised.value.message == message
    (note,) = raised.value.__notes__
    assert note.startswith("in the child:\nTraceback (most recent call last):\n")
    assert 'in fail\n    raise UsageError("wrong") if command' in note
