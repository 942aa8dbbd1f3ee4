"""The README says what is so: its program runs, and its tables are what the recorded reports say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.hazards.table import HOST, PLANTED

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_its_programs_run() -> None:
    programs = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    whole = [program for program in programs if program.startswith("import torch")]
    assert whole
    for program in whole:
        exec(compile(program, "README.md", "exec"), {})


def test_its_tables_are_made_from_the_recorded_reports() -> None:
    made = subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, check=False)
    assert made.returncode == 0, "run `python benchmarks/tables.py` and commit README.md"


def test_its_count_of_planted_faults() -> None:
    planted = [row for row in PLANTED if HOST in row.devices]
    num_prevented = sum(row.shows == "prevented" for row in planted)
    num_found = len(planted) - num_prevented
    counts = (
        f"{num_found} of {num_found} are found and named, {num_prevented} more can't occur, and all {len(planted)} "
    )
    assert counts in " ".join(README.split())
