"""Which installations of cuDNN's package attention is bound with; on a GPU `tests/gpu/test_cudnn_attention.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bcg.device.cudnn_attention import frontend
from bcg.environment import environment

TORCHS = 91900


def package(module: str = "cudnn._compiled_module", version: Callable[[], int] = lambda: TORCHS) -> Any:
    return SimpleNamespace(pygraph=type("pygraph", (), {"__module__": module}), backend_version=version)


def no_cudnn() -> int:
    raise RuntimeError("Unable to find symbol cudnnGetVersion")


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: TORCHS)
    frontend.cache_clear()
    yield
    frontend.cache_clear()


def test_a_package_that_works_with_torchs_cudnn_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = package()
    monkeypatch.setitem(sys.modules, "cudnn", installed)
    assert frontend() is installed


@pytest.mark.parametrize(
    "installed",
    [
        None,
        package(version=lambda: TORCHS - 1),
        package(version=no_cudnn),
        package(module="cudnn._pygraph"),
        SimpleNamespace(),
    ],
    ids=["none", "another cuDNN", "no cuDNN", "graphs in Python", "another package"],
)
def test_any_other_is_not(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", installed)
    assert frontend() is None


@pytest.mark.parametrize("is_used", [True, False])
def test_a_report_names_the_package_only_where_it_is_used(is_used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", package() if is_used else package(module="cudnn._pygraph"))
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    packages = environment(torch.device("cpu")).kernel_packages
    assert ("nvidia-cudnn-frontend" in packages) == is_used
    assert "mamba-ssm" in packages


def test_one_that_fails_to_load_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cuDNNs in one installation are an `AssertionError` there."""
    (tmp_path / "cudnn.py").write_text("raise AssertionError('Found 2 libcudnn.so.x in nvidia-cudnn-cuXX.')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cudnn", raising=False)
    assert frontend() is None
