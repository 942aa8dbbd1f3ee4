"""Modes that are played, without a process: the order in which they measure, and what is kept where they fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise, permutations
from typing import Any

import msgspec
import pytest

from bcg.child import ChildFailed
from bcg.errors import BcgError, UsageError
from bcg.modes.base import Counts, Preparation
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
from bcg.report import ModeName, ModeStatus, ProfileReport
from bcg.words import TargetWords
from tests.cli.reports import host_report

Happening = Callable[[ModeName, Command], None]
"""What happens to a mode at a command: it may raise."""
Play = Callable[..., None]


class Played:
    """A session that answers at once."""

    def __init__(self, happens: Happening, answers: Callable[[Command], Reply]) -> None:
        self._happens = happens
        self._answers = answers
        self._told: list[Command] = []

    def tell(self, command: Command) -> None:
        self._told.append(command)

    def hear(self, kind: type[Any]) -> Any:
        first = self._told[0]
        assert isinstance(first, Load)
        self._happens(first.mode, self._told[-1])
        return self._answers(self._told[-1])

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
            buckets = [Prepared(preparation=Preparation(tokens)) for tokens in command.buckets]
            return AllPrepared(buckets=buckets, startup_s=1.0)
        case Round():
            return Measured(step_ms=[1.0] * command.num_steps, host_us=[1.0] * command.num_steps)
        case Look():
            return AllLooked(buckets=[Looked(graph_launches=1) for _ in command.buckets])
        case Trace():
            return Traced()
        case Close():
            return Closed(counts=Counts())


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Let sessions be played, and this happen at their commands."""

    def play(happens: Happening, answers: Callable[[Command], Reply] = answer) -> None:
        @contextmanager
        def start_session() -> Iterator[Played]:
            yield Played(happens, answers)

        monkeypatch.setattr(run, "start_session", start_session)

    return play


def failing(mode: ModeName, kind: type[Any], error: BaseException) -> Happening:
    def happens(of: ModeName, command: Command) -> None:
        if of == mode and isinstance(command, kind):
            raise error

    return happens


def plan(*modes: ModeName, num_rounds: int = 2) -> Plan:
    return Plan(words=TargetWords("played"), buckets=(4, 8), modes=modes, num_rounds=num_rounds)


def statuses(report: ProfileReport) -> dict[ModeName, list[ModeStatus]]:
    return {
        mode.mode: [row.status for bucket in report.buckets for row in bucket.modes if row.mode == mode.mode]
        for mode in report.modes
    }


@pytest.mark.parametrize("modes", [("eager", "breakable"), ("eager", "full", "breakable")])
def test_no_mode_is_always_first_or_always_follows_the_same(play: Play, modes: tuple[ModeName, ...]) -> None:
    order: list[ModeName] = []

    def happens(mode: ModeName, command: Command) -> None:
        if isinstance(command, Round) and command.tokens == 4:
            order.append(mode)

    play(happens)
    run_profile(plan(*modes, num_rounds=2 * len(modes)))
    rounds = [order[start : start + len(modes)] for start in range(0, len(order), len(modes))]
    assert Counter(turn[0] for turn in rounds) == dict.fromkeys(modes, 2)
    assert {pair for turn in rounds for pair in pairwise(turn)} == set(permutations(modes, 2))


def test_a_mode_that_fails_in_its_first_round_has_measured_nothing(play: Play) -> None:
    play(failing("eager", Round, ChildFailed("no luck")))
    with pytest.raises(BcgError, match="^no mode could be measured; eager: no luck$"):
        run_profile(plan("eager"))


def test_an_interrupt_in_the_first_round_has_nothing_to_report(play: Play) -> None:
    play(failing("eager", Round, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt) as interrupted:
        run_profile(plan("eager"))
    assert not isinstance(interrupted.value, ProfileInterrupted)


@pytest.mark.parametrize("kind", [Look, Trace, Close])
def test_a_mode_that_fails_after_the_rounds_keeps_them(play: Play, kind: type[Any]) -> None:
    play(failing("breakable", kind, ChildFailed("no luck", hint="try again")))
    report = run_profile(replace(plan("eager", "breakable"), trace="trace.json"))
    assert statuses(report) == {"eager": ["measured"] * 2, "breakable": ["measured"] * 2}
    assert all(row.p50_ms == 1.0 and len(row.round_ms) == 2 for bucket in report.buckets for row in bucket.modes)
    (note,) = [note for note in report.warnings if note.code == "failed-later"]
    assert (note.message, note.cause) == (
        "breakable failed after it had been measured, or while it was",
        "no luck: try again",
    )
    assert ("not-looked-into" in [note.code for note in report.warnings]) == (kind is Look)


def test_a_mode_that_fails_between_the_rounds_keeps_those_before(play: Play) -> None:
    """The first bucket was measured, the second was not."""

    def happens(mode: ModeName, command: Command) -> None:
        if mode == "breakable" and isinstance(command, Round) and command.tokens == 8:
            raise ChildFailed("no luck")

    play(happens)
    report = run_profile(plan("eager", "breakable"))
    assert statuses(report) == {"eager": ["measured"] * 2, "breakable": ["measured", "failed"]}
    assert report.buckets[1].modes[1].reason == "no luck"
    assert "failed-later" in [note.code for note in report.warnings]


def second_bucket(status: ModeStatus, reason: str) -> Callable[[Command], Reply]:
    """Answers as all do, but for the second bucket, which is not ready."""

    def answers(command: Command) -> Reply:
        reply = answer(command)
        if not isinstance(reply, AllPrepared):
            return reply
        first, second = reply.buckets
        second = Prepared(preparation=replace(second.preparation, status=status, reason=reason))
        return msgspec.structs.replace(reply, buckets=[first, second])

    return answers


def test_a_bucket_that_is_not_ready_says_why_though_its_mode_failed_later(play: Play) -> None:
    play(failing("eager", Look, ChildFailed("no luck")), second_bucket("out of memory", "too large"))
    report = run_profile(plan("eager"))
    assert statuses(report) == {"eager": ["measured", "out of memory"]}
    assert report.buckets[1].modes[0].reason == "too large"


def test_a_wrong_bucket_gets_no_round_and_no_time(play: Play) -> None:
    measured: list[int] = []

    def happens(mode: ModeName, command: Command) -> None:
        if isinstance(command, Round):
            measured.append(command.tokens)

    play(happens, second_bucket("wrong", "differs from eager"))
    report = run_profile(plan("breakable", num_rounds=1))
    assert measured == [4]
    (row,) = report.buckets[1].modes
    assert (row.status, row.reason, row.p50_ms, row.round_ms) == ("wrong", "differs from eager", None, [])
    assert "wrong" in [note.code for note in report.warnings]


@pytest.mark.parametrize("kind", [Load, Prepare])
def test_wrong_usage_in_a_later_mode_loses_no_earlier_one(
    play: Play, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    """A break that the eager mode has no need of names nothing."""
    monkeypatch.setattr(run, "_fit_together", lambda *_: False)
    play(failing("breakable", kind, UsageError("--break 'x' names nothing", hint="look again")))
    report = run_profile(plan("eager", "breakable", "full"))
    assert statuses(report) == {"eager": ["measured"] * 2, "full": ["measured"] * 2, "breakable": ["failed"] * 2}
    assert report.buckets[0].modes[1].reason == "--break 'x' names nothing: look again"


def test_wrong_usage_before_anything_was_measured_is_an_error(play: Play) -> None:
    play(failing("breakable", Prepare, UsageError("--break 'x' names nothing")))
    with pytest.raises(UsageError, match="^--break 'x' names nothing$"):
        run_profile(plan("eager", "breakable"))
