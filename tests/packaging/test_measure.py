"""`benchmarks/measure.py` runs every test that needs a GPU: CI runs none of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks import measure

ROOT = Path(__file__).parents[2]


def test_every_file_of_gpu_tests_is_run() -> None:
    named = {word for words in (*measure.SIDE_BY_SIDE.values(), *measure.ALONE.values()) for word in words}
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert written <= named
