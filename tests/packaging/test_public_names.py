"""What ``import bcg`` offers, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bcg

PUBLIC = [
    "Batch",
    "BcgError",
    "BreakableCUDAGraph",
    "BreakableCUDAGraphCapture",
    "CaptureError",
    "CheckFailure",
    "ForwardContext",
    "GraphRunner",
    "HostReadError",
    "ModelError",
    "ReplayError",
    "ReportError",
    "Target",
    "UsageError",
    "__version__",
    "assert_graph_safe",
    "break_graph",
    "capture_report",
    "check",
    "current_capture",
    "current_forward_context",
    "default_buckets",
    "eager_on_graph",
    "forward_context",
    "load_target",
    "make_batch",
    "make_target",
    "parse_buckets",
    "read_report",
    "write_report",
]


def test_public_names_are_frozen() -> None:
    assert bcg.__all__ == PUBLIC
    assert dir(bcg) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(bcg, name)
    assert isinstance(value, str) or value.__name__ == name
    assert isinstance(value, str) or value.__doc__


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(bcg.__file__).read_text())
    imported = {
        (alias.asname, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bcg.")
        for alias in node.names
    }
    assert imported == {(name, f"bcg.{home}") for name, home in bcg._HOMES.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="^module 'bcg' has no attribute 'nothing'$"):
        bcg.nothing  # noqa: B018


def test_importing_bcg_loads_no_torch() -> None:
    code = "import sys, bcg, bcg.report, bcg.buckets, bcg.hazards, bcg.cards, bcg.errors; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
