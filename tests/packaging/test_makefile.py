"""The Makefile explains itself, and the README's commands are in it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGETS = ["help", "demo", "test", "check", "fix", "test-gpu", "fuzz", "sweep", "clean"]


def test_help_is_the_default_and_has_one_line_a_target() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [target for _, target, _ in lines] == TARGETS
    assert all(word == "make" and text for word, _, text in lines)


def test_every_make_command_of_the_readme_is_a_target() -> None:
    commands = re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(commands) <= set(TARGETS)


def test_ci_runs_the_readmes_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
