"""Modes that fail at each of their commands, played by sessions without a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bcg.child import ChildFailed
from bcg.errors import BcgError
from bcg.profile import run
from bcg.profile.messages import (
    AllLooked,
    AllPrepared,
    Close,
    Closed,
    Command,
    Load,
    Loaded,
    Look,
    Looked,
    Measured,
    Prepare,
    Prepared,
    Reply,
    Round,
    Trace,
    Traced,
)
from bcg.profile.plan import Plan
from bcg.profile.run import ProfileInterrupted, run_profile
from bcg.report import ModeName
from tests.cli.reports import host_report

Happening = Callable[[ModeName, Command], None]
"""What happens to a mode at a command: it may raise."""


class Played:
    """A session that answers at once."""

    def __init__(self, happens: Happening) -> None:
        self._happens = happens
        self._told: list[Command] = []

    def tell(self, command: Command) -> None:
        self._told.append(command)

    def hear(self, kind: type[Any]) -> Any:
        first = self._told[0]
        assert isinstance(first, Load)
        self._happens(first.mode, self._told[-1])
        return answer(self._told[-1])

    def ask(self, command: Command, kind: type[Any]) -> Any:
        self.tell(command)
        return self.hear(kind)


def answer(command: Command) -> Reply:
    report = host_report()
    match command:
        case Load():
            return Loaded(
                environment=report.environment, model=report.model, warnings=[], weight_bytes=1, free_bytes=2**60
            )
        case Prepare():
            buckets = [Prepared(tokens=tokens, status="measured") for tokens in command.buckets]
            return AllPrepared(buckets=buckets, startup_s=1.0)
        case Round():
            return Measured(step_ms=[1.0] * command.num_steps, host_us=[1.0] * command.num_steps)
        case Look():
            return AllLooked(buckets=[Looked(graph_launches=1) for _ in command.buckets])
        case Trace():
            return Traced()
        case Close():
            return Closed(num_compilations=0, num_skips=0, notes=[])


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Happening], None]:
    """Let sessions be played, and this happen at their commands."""

    def play(happens: Happening) -> None:
        @contextmanager
        def start_session() -> Iterator[Played]:
            yield Played(happens)

        monkeypatch.setattr(run, "start_session", start_session)

    return play


def failing(mode: ModeName, kind: type[Any], error: BaseException) -> Happening:
    def happens(of: ModeName, command: Command) -> None:
        if of == mode and isinstance(command, kind):
            raise error

    return happens


def plan(*modes: ModeName, num_rounds: int = 2) -> Plan:
    return Plan(model="played", device="cpu", buckets=(4, 8), modes=modes, num_rounds=num_rounds)


def test_a_mode_that_fails_in_its_first_round_has_measured_nothing(play: Callable[[Happening], None]) -> None:
    play(failing("eager", Round, ChildFailed("no luck")))
    with pytest.raises(BcgError, match="^no mode could be measured; eager: no luck$"):
        run_profile(plan("eager"))


def test_an_interrupt_in_the_first_round_has_nothing_to_report(play: Callable[[Happening], None]) -> None:
    play(failing("eager", Round, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt) as interrupted:
        run_profile(plan("eager"))
    assert not isinstance(interrupted.value, ProfileInterrupted)
