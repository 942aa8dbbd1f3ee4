"""Attempts in a child process: the same diagnosis as in this one, which stands whatever an attempt does to the child.

The host device can't be lost; the tests say that it could be.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType

import pytest
import torch
from torch import nn

from bcg.checking import verify
from bcg.device.host import HostDevice
from bcg.diagnose import UncapturableError, break_where_needed, elsewhere
from bcg.diagnose.messages import FunctionWords, PlaceWords, RemedyWords, Tried
from bcg.diagnose.remedies import Remedy
from bcg.diagnose.wording import from_words, in_words
from bcg.errors import BcgError
from bcg.functions import FunctionPlace, FunctionReference
from bcg.models import load_target
from bcg.runner import GraphRunner
from bcg.target import Target

BUCKETS = (4, 8)

MODELS = """
import os
import signal
import sys
import time

import torch
from torch import nn

from bcg import BreakableCUDAGraphCapture, current_capture, eager_on_graph
from bcg.breaks import is_following
from bcg.context import current_forward_context
from tests.diagnose import models

IS_CHILD = "bcg.diagnose.trial" in sys.orig_argv


def is_captured():
    return is_following() and isinstance(current_capture(), BreakableCUDAGraphCapture)


class Inner(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        y = x.clone()
        y.index_put_((x > 1e9,), x.flatten()[:0])
        return self.act(y)


class Outer(nn.Module):
    def __init__(self, act_inside, act_outside):
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.inner = Inner(act_inside)
        self.act = act_outside

    def forward(self, input_ids):
        return self.act(self.inner(self.embedding(input_ids)))


def same(x):
    return x


def kills(x):
    if IS_CHILD and is_captured():
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def waits(x):
    if IS_CHILD and is_captured():
        open("pid", "w").write(str(os.getpid()))
        time.sleep(1000)
    return x


def read_below(x):
    return scaled_by_nonzero(x)


def scaled_by_nonzero(x):
    rows = (x[..., 0] > 0).nonzero()
    return x * (1 + rows.new_ones(()) * len(rows))


def one_read():
    return models.Model(None, models.reads_a_value, None)


def every_size():
    names = ("reads_a_value", "fills_by_mask", "calls_a_function", "makes_a_constant", "makes_a_live_value")
    return models.Model(*[getattr(models, name) for name in names])


def own_function():
    return Outer(read_below, same)


def killed_inside():
    return Outer(kills, same)


def killed_everywhere():
    return Outer(same, kills)


def waiting():
    return Outer(waits, same)


def only_once():
    if IS_CHILD:
        raise RuntimeError("not again")
    return one_read()


@eager_on_graph
def live_size(x):
    return torch.full((1,), current_forward_context().num_tokens, device=x.device)


class FrozenIndex(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(1))

    def forward(self, x):
        size = torch.tensor([current_forward_context().num_tokens]).to(x.device)
        return x * self.table[size - live_size(x)]


def frozen_index():
    model = Outer(same, same)
    model.inner = FrozenIndex()
    return model
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(HostDevice, "can_be_lost", True)
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """What children answered: why an attempt isn't right, or None; for a child that died nothing."""
    heard: list[str | None] = []
    ask = elsewhere.Child.ask

    def listen(child: elsewhere.Child, command: object, kind: type) -> object:
        reply = ask(child, command, kind)  # type: ignore[type-var, arg-type]
        if isinstance(reply, Tried):
            heard.append(reply.outcome.reason)
        return reply

    monkeypatch.setattr(elsewhere.Child, "ask", listen)
    yield heard
    assert not children()


def children() -> list[bytes]:
    """The command lines of this process's children that try something."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
    return [command for command in commands if b"bcg.diagnose.trial" in command]


def assert_captures(target: Target) -> None:
    runner = GraphRunner(target)
    runner.capture(BUCKETS)
    found = verify(runner, num_rounds=1)
    assert all(bucket.num_launches and not bucket.failed and not bucket.errors for bucket in found.buckets)


def test_the_diagnosis_is_that_of_this_process(models: Path, answers: list[str | None]) -> None:
    name = f"{models}:every_size"
    target = load_target(name)
    there = break_where_needed(target, BUCKETS)
    assert there.num_trials == len(answers) == 2
    assert answers[-1] is None
    assert_captures(target)
    target = load_target(name)
    target.words = None
    assert break_where_needed(target, BUCKETS) == there
    assert len(answers) == 2


def test_a_function_of_the_models_own_file(models: Path, answers: list[str | None]) -> None:
    name = f"{models}:own_function"
    load_target(name)
    found = break_where_needed(load_target(name), BUCKETS)
    assert answers == [None]
    assert [row.name for row in found.automatic_breaks] == ["aten.index_put_.default", "scaled_by_nonzero"]


def test_an_attempt_that_kills_its_process_is_followed_by_the_next_size(
    models: Path, answers: list[str | None]
) -> None:
    target = load_target(f"{models}:killed_inside")
    found = break_where_needed(target, BUCKETS)
    assert answers == [None]
    assert found.num_trials == 2
    (row,) = found.automatic_breaks
    assert (row.size, row.module, row.card.operation) == ("module", "inner", "aten.index_put_.default")
    assert_captures(target)


def test_where_every_attempt_kills_its_process_there_is_the_card(models: Path, answers: list[str | None]) -> None:
    target = load_target(f"{models}:killed_everywhere")
    with pytest.raises(
        UncapturableError, match="no automatic break helps: the process of the attempt was killed by SIGKILL$"
    ) as caught:
        break_where_needed(target, BUCKETS)
    assert answers == []
    (card,) = caught.value.cards
    assert (card.hazard, card.operation, card.module) == ("L1", "aten.index_put_.default", "inner")


@pytest.mark.parametrize("case", ["nothing to try", "not from words", "no room", "can't be made again"])
def test_attempts_stay_here(
    models: Path, answers: list[str | None], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    target = load_target(f"{models}:{'only_once' if case.startswith('can') else 'one_read'}")
    if case == "nothing to try":
        target = load_target("qwen3-tiny")
    if case == "not from words":
        target.words = None
    if case == "no room":
        monkeypatch.setattr(elsewhere, "needed_bytes", lambda weight_bytes, device_type: 2**60)
    found = break_where_needed(target, BUCKETS, always_try=True)
    assert found.num_trials == 1
    assert answers == []
    assert len(found.automatic_breaks) == (case != "nothing to try")


def function_remedy(owner: object, function: FunctionType) -> Remedy:
    place = FunctionPlace(owner, function.__name__)
    return Remedy("function", "it", function=FunctionReference("somewhere:it", function.__code__, (place,)))


def test_places_of_functions_have_words() -> None:
    root = nn.Sequential(nn.Linear(1, 1))
    for owner, function in (
        (nn.Linear, nn.Linear.forward),
        (root[0], nn.Linear.forward),
        (vars(nn.functional), nn.functional.softmax),
    ):
        remedy = function_remedy(owner, function)
        words = in_words(remedy, root)
        assert words is not None
        assert from_words(words, root) == remedy


def test_places_that_only_this_process_can_find_have_none() -> None:
    class Local(nn.Module):
        def method(self) -> None: ...

    for owner in (Local, Local(), {"method": Local.method}):
        assert in_words(function_remedy(owner, Local.method), nn.Sequential(nn.Linear(1, 1))) is None


def test_words_that_mean_nothing_here() -> None:
    place = PlaceWords(file="/nowhere/model.py", path="", name="it")
    function = FunctionWords(path="nowhere:it", places=[place])
    words = RemedyWords(size="function", name="it", source="", function=function)
    with pytest.raises(BcgError, match="^there is no function nowhere:it here: no module of /nowhere/model.py"):
        from_words(words, nn.Linear(1, 1))


def test_a_child_ends_with_its_parent(models: Path) -> None:
    code = f"""if True:
        from bcg.device.host import HostDevice
        from bcg.diagnose import break_where_needed
        from bcg.models import load_target
        HostDevice.can_be_lost = True
        break_where_needed(load_target({f"{models}:waiting"!r}), (4,))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], cwd=models.parent, env=environment) as parent:
        written = models.parent / "pid"
        wait_until(lambda: written.exists() and written.read_text() != "", 120)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: has_ended(int(written.read_text())), 20)


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.gpu
def test_attempts_that_lose_the_device_leave_this_process_whole(models: Path, answers: list[str | None]) -> None:
    """A pin, and a break the size of an operation, freeze a size that a replay meets the live one with."""
    target = load_target(f"{models}:frozen_index", device="cuda")
    found = break_where_needed(target, BUCKETS)
    assert found.num_trials == 3
    assert [answer and "cost its process the device" in answer for answer in answers] == [True, True, None]
    (row,) = found.automatic_breaks
    assert (row.size, row.module) == ("module", "inner")
    torch.cuda.synchronize()
    assert_captures(target)
