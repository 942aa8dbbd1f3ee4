"""The README says what is so: its program runs, and its tables are what the recorded reports say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bcg.report import encode_report
from benchmarks import tables
from tests.cli.reports import profile_report

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


def test_its_tables_tell_no_error_of_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a mode that was measured at other token counts."""
    report = profile_report()
    first, second, *others = report.buckets
    rows = [
        msgspec.structs.replace(row, status="wrong", p50_ms=None, relative_error=0.9, bitwise=False)
        for row in second.modes
    ]
    buckets = [first, msgspec.structs.replace(second, modes=rows), *others]
    found = json.loads(encode_report(profile_report(buckets=buckets)))
    monkeypatch.setattr(tables, "reports", lambda name: [found])
    against_eager = [line.split(" | ")[1:3] for line in tables.modes().splitlines()[2:]]
    assert against_eager[2:5] == [["breakable", "bitwise"], ["compiled", "within 6.0e-03"], ["fused", "within 6.0e-03"]]
