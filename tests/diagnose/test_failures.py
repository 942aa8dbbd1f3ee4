"""A capture that fails where the tape sees nothing is placed in its module, and the next capture works."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bcg.breaks import current_capture, is_following
from bcg.capture import BreakableCUDAGraphCapture
from bcg.checking import verify
from bcg.device.host import HostDevice
from bcg.diagnose import UncapturableError, break_where_needed, diagnose, failures_explained
from bcg.errors import CaptureError
from bcg.runner import GraphRunner
from tests.diagnose.models import Inner, Model, reads_a_value, target_of

LOGGER = logging.Logger("of its own, out of reach of pytest's handlers")


def raises_under_capture(inner: Inner, x: Tensor) -> Tensor:
    """As an extension does that fails in a capture only; no operation that a survey could see."""
    if is_following() and isinstance(current_capture(), BreakableCUDAGraphCapture):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    return x * 2


@torch.library.custom_op("bcg_tests::synchronize_and_double", mutates_args=())
def synchronize_and_double(x: Tensor) -> Tensor:
    """Looks to a dispatch mode like any other operation."""
    torch.cuda.synchronize()
    return x * 2


@synchronize_and_double.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("bcg_tests::spoil_and_double", mutates_args=())
def spoil_and_double(x: Tensor) -> Tensor:
    """Ends the capture without any error of its own, as a library does that ignores what the driver returns."""
    from cuda.bindings import runtime

    runtime.cudaDeviceSynchronize()
    runtime.cudaGetLastError()
    return x.clone()


@spoil_and_double.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def refuses_when_asked(inner: Inner, x: Tensor) -> Tensor:
    if current_capture() is not None and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("this kernel can't be captured")
    return x * 2


def synchronizes(inner: Inner, x: Tensor) -> Tensor:
    return synchronize_and_double(x)  # type: ignore[no-any-return]


def spoils(inner: Inner, x: Tensor) -> Tensor:
    return spoil_and_double(x)  # type: ignore[no-any-return]


def placed_in_its_module(fault: object, device: str) -> UncapturableError:
    target = target_of(Model(None, fault, None), device)  # type: ignore[arg-type]
    with pytest.raises(UncapturableError) as caught:
        with failures_explained(target, (4, 8)):
            GraphRunner(target).capture((4, 8))
    card = caught.value.cards[0]
    assert card.module == "layers.1.inner"
    assert card.break_option == "--break 'layers.1.inner'"
    assert card.hazard == "L1"

    sound = GraphRunner(target_of(Model(None, None), device))
    sound.capture((4,))
    assert sound.graphs[4].num_segments == 1
    return caught.value


def test_an_error_that_only_the_capture_raises(device: str) -> None:
    error = placed_in_its_module(raises_under_capture, device)
    assert "not permitted when stream is capturing" in error.message
    assert "CUDA error" in error.cards[0].driver_text


def speaking_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a driver that numbers the moments since which it is asked."""
    numbers = itertools.count()

    def listen(device: HostDevice) -> Callable[[], str]:
        number = next(numbers)
        return lambda: f"said since {number}"

    monkeypatch.setattr(HostDevice, "listen", listen)


def test_what_the_driver_said_is_on_the_error_and_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    speaking_driver(monkeypatch)
    error = placed_in_its_module(raises_under_capture, "cpu")
    assert error.driver_text == "said since 0"
    assert [card.driver_text for card in error.cards] == ["said since 0"]


def test_a_card_of_the_survey_gets_the_drivers_words_of_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    speaking_driver(monkeypatch)
    error = placed_in_its_module(reads_a_value, "cpu")
    assert [(card.operation, card.driver_text) for card in error.cards] == [("Tensor.item", "said since 0")]


def test_an_automatic_break_keeps_what_the_driver_said(monkeypatch: pytest.MonkeyPatch) -> None:
    speaking_driver(monkeypatch)
    target = target_of(Model(None, raises_under_capture, None), "cpu")
    with pytest.raises(CaptureError) as caught:
        GraphRunner(target).capture((4, 8))
    (row,) = break_where_needed(target, (4, 8), failure=caught.value).automatic_breaks
    assert row.card.driver_text == "said since 0"


@pytest.mark.gpu
def test_a_kernel_wrapper_that_synchronizes() -> None:
    placed_in_its_module(synchronizes, "cuda")


@pytest.mark.gpu
def test_a_kernel_wrapper_that_ends_the_capture_in_silence() -> None:
    placed_in_its_module(spoils, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("fault", [synchronizes, spoils])
def test_what_only_a_capture_shows_gets_its_break(fault: Callable[..., Tensor]) -> None:
    target = target_of(Model(None, fault, None), "cuda")
    (row,) = break_where_needed(target, (4, 8)).automatic_breaks
    assert (row.size, row.module) == ("module", "layers.1.inner")
    runner = GraphRunner(target)
    runner.capture((4, 8))
    assert verify(runner, num_rounds=1).matches


def test_an_automatic_break_after_a_capture_that_failed(device: str) -> None:
    target = target_of(Model(None, raises_under_capture, None), device)
    with pytest.raises(CaptureError) as caught:
        GraphRunner(target).capture((4, 8))
    found = break_where_needed(target, (4, 8), failure=caught.value)
    (row,) = found.automatic_breaks
    assert (row.size, row.module) == ("module", "layers.1.inner")
    runner = GraphRunner(target)
    runner.capture((4, 8))
    assert runner.graphs[8].num_breaks == 1


def test_code_that_refuses_to_be_captured(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    target = target_of(Model(None, refuses_when_asked, None), device)
    (row,) = break_where_needed(target, (4, 8)).automatic_breaks
    assert (row.size, row.module) == ("module", "layers.1.inner")
    assert row.card.title == "RuntimeError while captured: this kernel can't be captured"
    assert row.card.source_line.startswith(__file__)


def computes_the_same(inner: Inner, x: Tensor) -> Tensor:
    return x * (2 if current_capture() is not None and torch.cuda.is_current_stream_capturing() else 2.0)


def computes_who_knows_what(inner: Inner, x: Tensor) -> Tensor:
    return computes_the_same(inner, x) * random.random()


def test_code_that_asks_whether_it_is_captured(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert diagnose(target_of(Model(None, computes_the_same), device), (4, 8)) == []
    cards = diagnose(target_of(Model(None, computes_who_knows_what), device), (4, 8))
    (card,) = [card for card in cards if card.hazard == "S3"]
    assert card.module == "layers.1.inner"
    assert card.source_line.startswith(inspect.getfile(Inner)), "the line that calls the helper"


def logs_a_tensor(inner: Inner, x: Tensor) -> Tensor:
    LOGGER.warning("largest %s", x.max())
    return x * 2


def test_a_tensor_that_is_logged_is_one_card_and_no_traceback() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    LOGGER.addHandler(handler)
    target = target_of(Model(logs_a_tensor), "cpu")
    try:
        with pytest.raises(UncapturableError) as caught, failures_explained(target, (8,)):
            with contextlib.redirect_stderr(written):
                GraphRunner(target).capture((8,))
    finally:
        LOGGER.removeHandler(handler)
    (card,) = caught.value.cards
    assert (card.hazard, card.operation, card.title) == ("L1", "Tensor.__repr__", "printing reads it")
    assert card.source_line.startswith(f"{__file__}:")
    assert "Traceback" not in written.getvalue()
    assert logging.raiseExceptions
