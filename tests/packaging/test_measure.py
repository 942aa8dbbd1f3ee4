"""`benchmarks/measure.py` runs every test that needs a GPU: CI runs none of them. It says whether all ended well."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import measure

ROOT = Path(__file__).parents[2]


def test_every_file_of_gpu_tests_is_run() -> None:
    named = {word for words in (*measure.SIDE_BY_SIDE.values(), *measure.ALONE.values()) for word in words}
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert written <= named


@pytest.mark.parametrize(("code", "exit_code"), [(0, 0), (3, 1)])
def test_the_exit_code_is_1_if_a_step_did_not_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, exit_code: int
) -> None:
    """Whatever the steps after it do."""
    steps = [measure.Step("group", f"exit-{code}", [sys.executable, "-c", f"exit({code})"], 60) for code in (code, 0)]
    monkeypatch.setattr(measure, "steps", lambda out: iter(steps))
    monkeypatch.setattr(sys, "argv", ["measure.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        measure.main()
    assert ended.value.code == exit_code
