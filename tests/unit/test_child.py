"""A child process that fails says where."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_a_child_that_outlived_its_parent_before_it_listened_does_nothing(tmp_path: Path) -> None:
    """It imports for seconds first; nobody reads what it would answer."""
    (tmp_path / "failing_child.py").write_text(CHILD)
    command_read, command_write = os.pipe()
    reply_read, reply_write = os.pipe()
    os.write(command_write, b'"use"\n')
    subprocess.run(
        [sys.executable, "-m", "failing_child", str(command_read), str(reply_write), "0"],
        pass_fds=(command_read, reply_write),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))},
        check=True,
    )
    for descriptor in (command_read, command_write, reply_write):
        os.close(descriptor)
    with open(reply_read) as replies:
        assert replies.read() == ""
