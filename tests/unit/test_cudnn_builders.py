"""Plans that other processes build. The package is a stand-in here; on a GPU `tests/gpu/test_cudnn_attention.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bcg.device import cudnn_builders, cudnn_graph
from bcg.device.cudnn_builders import Builders, current_builders, planned_ahead
from bcg.device.cudnn_graph import Attention, Layout

VERSION = 91900
PACKAGE = """
import json, os, sys, time

try:
    import torch
except ImportError:
    torch = None
print("some package prints when it is loaded", flush=True)

class cudnnGraphNotSupportedError(Exception):
    pass

class data_type:
    FLOAT, HALF, BFLOAT16 = "FLOAT", "HALF", "BFLOAT16"

class heur_mode:
    A = "A"

class Properties:
    def __init__(self, given):
        self.given = given

    def serialize(self):
        return f"gpu {self.given}"

create_device_properties = Properties

def backend_version():
    return 91900

class Output:
    def __init__(self, noted):
        self.noted = noted

    def set_output(self, is_output):
        return self

    def set_uid(self, uid):
        return self

    def set_dim(self, shape):
        self.noted["output"] = [list(shape)]
        return self

    def set_stride(self, strides):
        self.noted["output"].append(list(strides))
        return self

class pygraph:
    def __init__(self, device_property=None, sm_version=None, **kinds):
        self.noted = {"kinds": kinds, "device": device_property.given, "sm": sm_version, "tensors": []}
        self.noted["torch"] = torch is not None
        self.noted["process"] = os.getpid()

    def tensor(self, dim, stride, data_type, uid):
        self.noted["tensors"].append([dim, stride])
        return uid

    def sdpa(self, q, k, v, generate_stats, attn_scale, use_causal_mask):
        self.noted["scale"] = attn_scale
        return Output(self.noted), None

    def validate(self):
        rows = self.noted["tensors"][0][0][2]
        if rows == 7:
            raise cudnnGraphNotSupportedError("no plan for 7")
        if rows == 13:
            os._exit(1)
        if rows == 17:
            time.sleep(600)

    def build_operation_graph(self):
        pass

    def create_execution_plans(self, modes):
        assert modes == ["A"]

    check_support = build_plans = build_operation_graph

    def serialize(self):
        return list(json.dumps(self.noted).encode())
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "cudnn.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cudnn", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    import cudnn

    yield cudnn
    sys.modules.pop("cudnn")


def attention(rows: int, *, is_split: bool = False) -> Attention:
    def layout(heads: int, dim: int) -> Layout:
        strides = (rows * dim, dim) if is_split else (dim, heads * dim)
        return (1, heads, rows, dim), (heads * rows * dim, *strides, 1)

    return Attention("BFLOAT16", layout(8, 64), layout(2, 64), layout(2, 32), 0.1)


@pytest.mark.parametrize("is_split", [False, True], ids=["rows of all heads", "one head after the other"])
def test_layouts_of_other_rows_are_those_that_the_model_will_give(is_split: bool) -> None:
    whole = attention(4096, is_split=is_split)
    for rows in (2, 8, 64, 4096):
        assert whole.with_rows(rows) == attention(rows, is_split=is_split)
    assert whole.output_layout == ((1, 4096, 8, 32), (4096 * 8 * 32, 256, 32, 1))


def built(builders: Builders, kind: Attention, row_counts: Sequence[int], index: int = 0) -> list[bytes]:
    """Wait until no process is going to build anything more."""
    for reader in builders._readers:
        reader.join(timeout=60)
    return [builders.take(None, index, kind.with_rows(rows)) for rows in row_counts]


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_builders, "_FEWEST_PLANS", 1)


def test_other_processes_build_what_comes_after_the_first(package: Any) -> None:
    builders = Builders([64, 32, 16, 8, 4, 2, 1])
    try:
        assert builders.take(package, 3, attention(64)) == b""
        assert builders.take(package, 3, attention(64)) == b""
        plans = [json.loads(plan) for plan in built(builders, attention(64), (32, 16, 8, 4, 2), index=3)]
    finally:
        builders.close()
    for rows, plan in zip((32, 16, 8, 4, 2), plans, strict=True):
        given = attention(rows)
        assert plan["tensors"] == json.loads(json.dumps([given.query, given.key, given.value]))
        assert plan["output"] == [[1, 8, rows, 32], [rows * 256, 32, 256, 1]]
        assert (plan["device"], plan["sm"], plan["scale"], plan["torch"]) == ("gpu 3", 90, 0.1, False)
        assert plan["kinds"]["io_data_type"] == "BFLOAT16"
    assert len({plan["process"] for plan in plans}) == 4
    assert len(builders._plans) == 6, "one row needs no plan of cuDNN"


def test_kinds_of_attention_are_told_apart(package: Any) -> None:
    other = attention(64)._replace(scale=0.2)
    with planned_ahead([64, 32]):
        builders = current_builders()
        assert builders is not None
        for kind, index in ((attention(64), 0), (other, 0), (attention(64), 1)):
            assert builders.take(package, index, kind) == b""
            plan = json.loads(built(builders, kind, (32,), index)[0])
            assert (plan["scale"], plan["device"]) == (kind.scale, f"gpu {index}")
    assert current_builders() is None


def test_what_no_process_builds_is_nothing(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_builders, "_NUM_PROCESSES", 1)
    builders = Builders([64, 7, 32, 13, 16])
    assert builders.take(package, 0, attention(64)) == b""
    plans = built(builders, attention(64), (7, 32, 13, 16, 48))
    builders.close()
    assert list(map(bool, plans)) == [False, True, False, False, False], "7 has none, 13 ends the process, 48 is new"


def test_nobody_waits_for_a_plan(package: Any) -> None:
    with planned_ahead([64, 17]):
        builders = current_builders()
        assert builders is not None
        builders.take(package, 0, attention(64))
        (process,) = builders._processes
        assert builders.take(package, 0, attention(17)) == b"", "the stand-in sleeps for 600 s"
        assert process.poll() is None
    assert process.poll() is not None
    assert not any(reader.is_alive() for reader in builders._readers)


def test_few_plans_are_not_worth_a_process(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_builders, "_FEWEST_PLANS", 3)
    builders = Builders([64, 32, 16])
    builders.take(package, 0, attention(64))
    assert not builders._processes
    builders = Builders([64, 32, 16, 8])
    builders.take(package, 0, attention(64))
    assert len(builders._processes) == 3
    builders.close()


def test_half_a_plan_is_none(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killed.py").write_text("import sys; sys.stdin.read(); sys.stdout.write('QUJD\\nQUJD')")
    monkeypatch.setattr(cudnn_graph, "__file__", str(tmp_path / "killed.py"))
    monkeypatch.setattr(cudnn_builders, "_NUM_PROCESSES", 1)
    builders = Builders([64, 32, 16])
    builders.take(package, 0, attention(64))
    assert built(builders, attention(64), (32, 16)) == [b"ABC", b""]


def test_a_process_with_another_cudnn_builds_nothing(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "backend_version", lambda: VERSION + 1)
    with planned_ahead([64, 32]):
        builders = current_builders()
        assert builders is not None
        assert builders.take(package, 0, attention(64)) == b""
        assert built(builders, attention(64), (32,)) == [b""]


def test_without_processes_plans_are_built_here(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    builders = Builders([64, 32])
    assert [builders.take(package, 0, attention(rows)) for rows in (64, 32)] == [b"", b""]


def test_no_process_is_left(package: Any) -> None:
    with pytest.raises(ZeroDivisionError), planned_ahead([64, 17, 16]):
        builders = current_builders()
        assert builders is not None
        builders.take(package, 0, attention(64))
        processes = list(builders._processes)
        with planned_ahead([5]):
            assert current_builders() is builders
        raise ZeroDivisionError
    assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)
