"""Running a profile: a process a mode, rounds in turns, and everything that was found in one report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bcg.child import Child, ChildFailed, needed_bytes
from bcg.errors import BcgError
from bcg.modes import compiles_every_bucket, why_unavailable
from bcg.profile.messages import (
    AllLooked,
    AllPrepared,
    Close,
    Closed,
    Load,
    Loaded,
    Look,
    Measured,
    Prepare,
    Round,
    Trace,
    Traced,
)
from bcg.profile.plan import ModeRun, Plan
from bcg.profile.session import start_session
from bcg.profile.summary import profile_report
from bcg.report import ModeName, ProfileReport

Progress = Callable[[str], None]


class ProfileInterrupted(KeyboardInterrupt):
    """A profile was interrupted after something was measured: hours of compiling may be in it.

    Attributes:
        report: What was measured until then.
    """

    def __init__(self, report: ProfileReport) -> None:
        super().__init__()
        self.report = report


def run_profile(plan: Plan, on_step: Progress = lambda text: None) -> ProfileReport:
    """Profile a model in every mode of the plan.

    Args:
        plan: What to profile.
        on_step: Told in words what happens next.

    Raises:
        UsageError: The model, dtype or a glob names nothing.
        BcgError: The model can't be made, or no mode at all could be measured.
        ProfileInterrupted: Ctrl-C came when there was something to report.
    """
    runs = [ModeRun(mode, why_unavailable(mode, plan.words.device_type, plan.num_ranks)) for mode in plan.modes]
    # What is measured soonest comes first, so that an interrupted profile keeps most.
    live = sorted((run for run in runs if run.unavailable is None), key=lambda run: compiles_every_bucket(run.mode))
    if not live:
        raise BcgError(
            f"none of the modes {', '.join(plan.modes)} is available here: {runs[0].unavailable}",
            hint="add eager or breakable to --modes",
        )
    try:
        _run_modes(plan, live, on_step)
    except KeyboardInterrupt:
        if not any(run.rounds for run in live):
            raise
        raise ProfileInterrupted(profile_report(plan, runs)) from None
    if not any(run.rounds for run in live):
        first = live[0]
        raise BcgError(
            f"no mode could be measured; {first.mode}: {_why(first)}", hint="see --traceback"
        ) from first.error
    return profile_report(plan, runs)


def _why(run: ModeRun) -> str:
    reasons = [one.preparation.reason for one in run.prepared.buckets if one.preparation.reason] if run.prepared else []
    return run.failure or (reasons[0] if reasons else "no reason given")


def _run_modes(plan: Plan, live: list[ModeRun], on_step: Progress) -> None:
    """Run all modes, together where memory holds the model once for each."""
    with ExitStack() as stack:
        on_step(f"making {plan.words.model}")
        first = stack.enter_context(start_session())
        live[0].loaded = loaded = first.ask(_load(plan, live[0].mode), Loaded)
        plan = plan.for_model(loaded.max_tokens)
        if plan.num_ranks is None and _fit_together(plan, loaded, len(live)):
            for run in live:
                run.in_turns = True
            others = [stack.enter_context(start_session()) for _ in live[1:]]
            _load_all(plan, list(zip(live[1:], others, strict=True)))
            _measure(plan, list(zip(live, [first, *others], strict=True)), on_step)
            return
        _measure(plan, [(live[0], first)], on_step)
    for run in live[1:]:
        # Also of what is wrong usage in this mode alone: those before it have been measured.
        with _failures_of(run, BcgError), start_session() as session:
            _load_all(plan, [(run, session)])
            _measure(plan, [(run, session)], on_step)


def _load(plan: Plan, mode: ModeName) -> Load:
    return Load(mode=mode, words=plan.words, nvtx=plan.nvtx, rank_timeout_s=plan.rank_timeout_s)


def _fit_together(plan: Plan, loaded: Loaded, num_modes: int) -> bool:
    return loaded.free_bytes >= (num_modes - 1) * needed_bytes(loaded.weight_bytes, plan.words.device_type)


def _load_all(plan: Plan, pairs: Sequence[tuple[ModeRun, Child]]) -> None:
    for run, session in pairs:
        session.tell(_load(plan, run.mode))
    for run, session in pairs:
        with _failures_of(run):
            run.loaded = session.hear(Loaded)


def _measure(plan: Plan, pairs: list[tuple[ModeRun, Child]], on_step: Progress) -> None:
    """Prepare these modes one after another, let them take turns in every round, then look into each."""
    for run, session in pairs:
        if run.error is not None:
            continue
        on_step(f"preparing {run.mode}")
        with _failures_of(run):
            run.prepared = session.ask(Prepare(buckets=list(plan.buckets)), AllPrepared)
    for number in range(plan.num_rounds):
        on_step(f"round {number + 1} of {plan.num_rounds}" + (f" of {pairs[0][0].mode}" if len(pairs) == 1 else ""))
        for tokens in sorted(plan.buckets):
            for run, session in _turns(pairs, number):
                if tokens in run.ready():
                    with _failures_of(run):
                        measured = session.ask(Round(tokens=tokens, num_steps=plan.steps_per_round), Measured)
                        run.rounds.setdefault(tokens, []).append(measured)
    for run, session in pairs:
        if run.error is not None:
            continue
        on_step(f"looking into {run.mode}")
        with _failures_of(run):
            buckets = run.ready()
            looked = session.ask(Look(buckets=buckets), AllLooked)
            run.looks = dict(zip(buckets, looked.buckets, strict=True))
            if plan.trace is not None and run.mode == traced_mode(plan.modes) and buckets:
                session.ask(Trace(path=plan.trace, buckets=buckets), Traced)
            run.counts = session.ask(Close(), Closed).counts


def _turns(pairs: list[tuple[ModeRun, Child]], number: int) -> list[tuple[ModeRun, Child]]:
    """Return the order of a round: rotated, and every second one backwards, so that no mode always follows the same."""
    shift = number // 2 % len(pairs)
    rotated = pairs[shift:] + pairs[:shift]
    return rotated[::-1] if number % 2 else rotated


@contextmanager
def _failures_of(run: ModeRun, kind: type[BcgError] = ChildFailed) -> Iterator[None]:
    """If a mode's process fails in the block, the mode has failed and the others go on."""
    try:
        yield
    except kind as error:
        run.error = error


def traced_mode(modes: Sequence[ModeName]) -> ModeName:
    """Return the mode whose steps a trace shows: one with segments, if there is any."""
    return next((mode for mode in ("breakable", "fused", "full") if mode in modes), modes[0])
