"""The process in which attempts run that could cost a process its device: what it does at each command."""

from __future__ import annotations

from bcg.child import serve
from bcg.device import find_device
from bcg.device.driver_log import keep_log
from bcg.diagnose.attempt import Outcome, attempt
from bcg.diagnose.messages import Command, Load, Loaded, Reply, Tried, Try
from bcg.diagnose.remedies import Remedies
from bcg.diagnose.wording import from_words
from bcg.errors import first_line
from bcg.models import load_from_words
from bcg.target import Target


class _Trial:
    """A target as the parent has it, and the remedies that are tried on it.

    Args:
        target: Made from the parent's words.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._remedies = Remedies(target)

    def attempt(self, command: Try) -> Tried:
        """Try these remedies.

        Where that costs the device, whatever the error names may be innocent: it came when nothing worked any more.
        """
        device = find_device(self._target.device)
        self._remedies.choose([from_words(words, self._target.module) for words in command.remedies])
        try:
            outcome = attempt(self._target, command.sizes)
        except Exception as error:
            if not device.is_lost():
                raise
            outcome = Outcome(first_line(error))
        if outcome.reason is not None and device.is_lost():
            outcome = Outcome(f"the attempt cost its process the device: {outcome.reason}")
            return Tried(outcome=outcome, is_lost=True)
        return Tried(outcome=outcome)


class _Answers:
    """Does what commands say, to the target that the first one makes."""

    def __init__(self) -> None:
        self._trial: _Trial | None = None

    def __call__(self, command: Command) -> Reply:
        if isinstance(command, Load):
            keep_log()
            self._trial = _Trial(load_from_words(command.words))
            return Loaded()
        assert self._trial is not None
        return self._trial.attempt(command)


if __name__ == "__main__":
    serve(Command, _Answers())
