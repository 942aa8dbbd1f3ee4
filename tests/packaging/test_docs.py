"""The map of the house has a line for every file, and none for a file that is gone."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNLISTED = {"__init__.py", "__main__.py", "commands/__init__.py", "views/__init__.py"}


def test_every_file_has_its_line() -> None:
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    sources = [
        path.relative_to(package).as_posix()
        for package in (ROOT / "runtime" / "bcg", ROOT / "bcg_cli")
        for path in package.rglob("*.py")
    ]
    assert sorted(listed) == sorted(set(sources) - UNLISTED)


def test_every_folder_of_tests_is_told() -> None:
    told = re.findall(r"`(\w+)/`", (ROOT / "docs" / "architecture.md").read_text().partition("## `tests/`")[2])
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/*.py")}
    assert sorted(told) == sorted(folders)
