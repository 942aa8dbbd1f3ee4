"""Words about processes that are refused before any is started."""

from __future__ import annotations

from typing import Any

import pytest


def test_experts_need_a_number_of_processes(bcg: Any) -> None:
    done = bcg("capture", "--ep")
    assert done.code == 2
    assert done.err == "error: --ep shards experts over processes\nhint: say over how many, with --tp N\n"


def test_another_number_than_the_launchers_is_refused(bcg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "test",
    }.items():
        monkeypatch.setenv(name, value)
    done = bcg("capture", "--tp", 2)
    assert done.code == 2
    assert done.err.startswith("error: --tp 2 in a run of 4 ranks\n")
