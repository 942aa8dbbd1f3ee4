"""Cards: what messages mean, and what a card says."""

from __future__ import annotations

import shlex

import pytest

from bcg.cards import make_card
from bcg.diagnose.cards import card_of_error, cards_of
from bcg.diagnose.survey import Finding
from bcg.errors import CaptureError, Place
from bcg.hazards import HAZARDS


@pytest.mark.parametrize(
    ("hazard", "message"),
    [
        ("L1", "CUDA error: operation not permitted when stream is capturing"),
        ("L1", "CUDA error: operation failed due to a previous error during capture"),
        ("L1", "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is pinned."),
        ("L2", "cudaHostAlloc failed: operation not permitted when stream is capturing"),
        ("L4", "CUDA error: capturing stream has unjoined work"),
        ("L5", "CUDA error: dependency created on uncaptured work in another stream"),
        ("L6", "CUDA error: operation would make the legacy stream depend on a capturing blocking stream"),
        ("L7", "cudaEventQuery: operation not permitted when stream is capturing"),
        ("L8", "Offset increment outside graph capture encountered: philox offset is not in capture mode"),
        ("L9", "Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture."),
        ("L10", "Autotuner failed: operation not permitted when stream is capturing"),
        ("L11", "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate"),
        ("L13", "CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_what_a_message_means(hazard: str, message: str) -> None:
    cause = RuntimeError(message)
    error = CaptureError("bucket of 8 tokens: RuntimeError, in segment 2 (module 'layers.1.mlp') of the capture")
    error.__cause__ = cause
    card = card_of_error(error)
    assert card is not None
    assert (card.hazard, card.module) == (hazard, "layers.1.mlp")
    assert (card.cause, card.remedy) == (HAZARDS[hazard].cause, HAZARDS[hazard].remedy)
    assert card.break_option == "--break 'layers.1.mlp'"
    assert card.driver_text == (message if message.startswith("CUDA error") else "")


def test_what_the_driver_said_is_on_the_card_and_may_tell_the_cause() -> None:
    said = "[CUDA][E] operation not permitted when stream is capturing"
    card = card_of_error(CaptureError("bucket of 8 tokens: RuntimeError: no", driver_text=said))
    assert card is not None
    assert (card.hazard, card.driver_text) == ("L1", said)
    card = card_of_error(CaptureError("CUDA out of memory", driver_text=said))
    assert card is not None
    assert (card.hazard, card.driver_text) == ("L13", said)
    (card,) = cards_of([Finding("L1", "", "no", ("layers.0",), "", driver_text=said)])
    assert card.driver_text == said


def test_an_unknown_message_gives_no_card() -> None:
    assert card_of_error(CaptureError("something else")) is None


def test_the_errors_own_hazard_and_place_come_first() -> None:
    error = CaptureError("no", hazard="S9", place=Place("aten.mm.default", "layers.0", "model.py:3"))
    card = card_of_error(error)
    assert card is not None
    assert (card.hazard, card.operation, card.module, card.source_line) == (
        "S9",
        "aten.mm.default",
        "layers.0",
        "model.py:3",
    )


def test_a_shell_takes_the_option_of_every_card_as_one_path() -> None:
    (found,) = cards_of([Finding("L1", "", "no", ("the 'x' layer",), "")])
    for card in (found, make_card("S2", "", module="the 'x' layer")):
        assert shlex.split(card.break_option) == ["--break", "the 'x' layer"]


def test_one_card_for_one_line_in_many_layers() -> None:
    findings = [Finding("L1", "Tensor.item", "item() reads it", (f"layers.{i}",), "model.py:3") for i in range(3)]
    other = Finding("L1", "Tensor.item", "item() reads it", (), "model.py:9")
    first, second = cards_of([*findings, other])
    assert (first.module, first.occurrences, first.break_option) == ("layers.0", 3, "--break 'layers.0'")
    assert (second.module, second.occurrences, second.break_option) == ("", 1, "")
