"""A sweep: a target captured at one bucket after another, the largest first, into one pool."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bcg.alignment import Dropped
from bcg.breaks import BreakLabel, bound_breaks, call_break
from bcg.capture import BreakableCUDAGraphCapture
from bcg.closure import explains, module_tensors
from bcg.collectives import in_step
from bcg.compilations import noted_compilations, runs_compiled_code
from bcg.context import forward_context
from bcg.device import find_device
from bcg.device.base import Device, Pool
from bcg.errors import BcgError, CaptureError, Place, first_line
from bcg.graph import BreakableCUDAGraph
from bcg.layout import plan_arenas
from bcg.probe import refuse_other_outputs
from bcg.ranges import stretch
from bcg.rehearsal import rehearse
from bcg.static_inputs import StaticInputs
from bcg.structure import is_sparse, map_tensors, unowned_alias
from bcg.target import Target, make_batch
from bcg.warmup import cut_to, distinct_prefixes
from bcg.whereabouts import users_line

_silencing = threading.Lock()
_num_silent, _raises = 0, True

INPUT_SEED = 0
"""Seed of the inputs that a bucket is captured with; replay must not depend on their values."""


@dataclass(frozen=True)
class BucketCapture:
    """What the capture of one bucket took.

    Attributes:
        tokens: The bucket.
        status: ``captured``, ``out of memory`` (then the smaller buckets are still tried) or ``failed`` (then they
            are not).
        warmup_ms: Wall time of the eager runs before the capture.
        capture_ms: Wall time of the captured forward; the device's work in it is not waited for.
        pool_bytes: Growth of the graph pool since the bucket before; of the first one, all of it.
        driver_bytes: Growth of device memory outside the caching allocator: the instantiated graphs.
        eager_peak_bytes: Most bytes that the same forward allocates at once when it runs eagerly.
        compiled_at: Lines of code at which torch's compiler worked inside the capture, instead of before.
        error: First line of what went wrong.
    """

    tokens: int
    status: Literal["captured", "out of memory", "failed"]
    warmup_ms: float = 0.0
    capture_ms: float = 0.0
    pool_bytes: int = 0
    driver_bytes: int = 0
    eager_peak_bytes: int | None = None
    compiled_at: tuple[str, ...] = ()
    error: str | None = None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out: on the host torch says so in words only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


class Sweep:
    """Captures the buckets of a target, and owns what they share.

    Args:
        target: What is captured.
        max_tokens: The largest bucket.
        num_warmups: Eager runs before each capture; after the first bucket one run of each kind of layer.
        tape: Whether the tape follows the first capture.
        everything_eager: Run the whole forward as one break.

    Attributes:
        inputs: The static inputs of all buckets.
        pool: The one pool; `None` before the first capture.
        graphs: Captured so far, by bucket.
        outputs: What the target returned in each capture; memory of the pool is not kept by it.
    """

    def __init__(
        self, target: Target, max_tokens: int, *, num_warmups: int, tape: bool, everything_eager: bool
    ) -> None:
        self.target = target
        self.inputs = StaticInputs(target.input_specs, max_tokens, target.device)
        self.pool: Pool | None = None
        self.graphs: dict[int, BreakableCUDAGraph] = {}
        self.outputs: dict[int, Any] = {}
        self._pool_bytes = 0
        self._num_warmups = num_warmups
        self._tape = tape
        self._everything_eager = everything_eager
        self._needs_tape = tape
        # Ranks would have to agree on whether the model runs on fewer layers, so they warm up whole.
        cuts_layers = num_warmups and target.alignment is None and not target.warms_up_whole
        self._prefixes = distinct_prefixes(target.module) if cuts_layers else {}

    def capture_bucket(self, tokens: int) -> BucketCapture:
        """Warm up and capture one bucket; the largest comes first.

        Raises:
            CaptureError: It could not be captured; nothing of it is left.
        """
        ranks = self.target.alignment
        if ranks is None:
            return self._try_bucket(tokens)
        ranks.begin(f"the bucket of {tokens} tokens")
        result = self._try_bucket(tokens)
        if result.status != "captured":
            ranks.drop(result.error or result.status)
        answers = ranks.exchange((result.error, self._needs_tape))
        self._needs_tape = any(needs_tape for _, needs_tape in answers)
        failed = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(answers) if error is not None]
        if not failed:
            return result
        if tokens in self.graphs:
            self.graphs.pop(tokens).reset()
            del self.outputs[tokens]
        return BucketCapture(tokens, "out of memory", error=failed[0])

    def _try_bucket(self, tokens: int) -> BucketCapture:
        device = find_device(self.target.device)
        driver_text = device.listen()
        try:
            try:
                return self._warm_up_and_capture(tokens)
            except Dropped:
                raise
            except Exception as error:
                if is_out_of_memory(error) or self._needs_tape or self.target.alignment is not None:
                    raise
                self._needs_tape = True  # the tape says where and why
                driver_text = device.listen()
                return self._warm_up_and_capture(tokens)
        except Dropped:
            return BucketCapture(tokens, "out of memory")
        except BcgError as error:
            place, hazard, said = getattr(error, "place", None), getattr(error, "hazard", None), driver_text()
            hint = self._hint_if_lost() or error.hint
            raise CaptureError(
                f"bucket of {tokens} tokens: {error.message}", hint=hint, place=place, hazard=hazard, driver_text=said
            ) from error
        except Exception as error:
            if is_out_of_memory(error):
                return BucketCapture(tokens, "out of memory", error=first_line(error))
            said = driver_text()
            where = f", {error.__notes__[0]}" if getattr(error, "__notes__", None) else ""
            raise CaptureError(
                f"bucket of {tokens} tokens: {type(error).__name__}: {first_line(error)}{where}",
                hint=self._hint_if_lost()
                or "see --traceback; the forward must run eagerly at this size before it can be captured",
                place=Place(source=users_line(error)),
                driver_text=said,
            ) from error

    def _hint_if_lost(self) -> str | None:
        if not find_device(self.target.device).is_lost():
            return None
        return "the error has cost this process the GPU: nothing more can be run on it; start again without this size"

    def _warm_up_and_capture(self, tokens: int) -> BucketCapture:
        graph = BreakableCUDAGraph(self.target.device)
        device = graph.device
        generator = torch.Generator(self.target.device).manual_seed(INPUT_SEED)
        batch = make_batch(self.target, (tokens,), generator)
        self.inputs.load(batch.inputs, tokens, tokens)
        started = time.perf_counter()
        with forward_context(batch.context()), device.capture_stream(), device.as_recorded():
            with in_step(self.target.alignment if self._tape else None, "warming up"):
                with stretch("warm-up", tokens), bound_breaks():
                    peak_bytes = self._warm_up(device, tokens)
                if self.pool is None:
                    self.pool = device.new_pool(self._plan_pool(device, self.inputs.views(tokens)))
            if not self.graphs:
                device.empty_cache()  # what the largest warm-up used is what the pool will need
            driver_bytes = device.driver_bytes()
            warmed_up = time.perf_counter()
            known = None if self._needs_tape else self._known_externals()
            ranks = self.target.alignment
            capture = BreakableCUDAGraphCapture(
                graph,
                self.pool,
                # The watchdog thread of NCCL asks for events at any time (hazard L7).
                capture_error_mode="global" if ranks is None else "thread_local",
                known_externals=known,
                alignment=ranks,
            )
            views = self.inputs.views(tokens)
            compiling = noted_compilations()
            with (
                stretch("capture", tokens),
                torch.inference_mode(),
                _silent_logging(),
                compiling as compiled_at,
                capture,
            ):
                output = self._forward(self.target.module, views)
            captured = time.perf_counter()
        refuse_other_outputs(self.target, output, tokens)
        driver_bytes = device.driver_bytes() - driver_bytes
        if not self.graphs:
            self._needs_tape = device.needs_tape or (self._tape and not explains(self._known_externals(), graph))
            if known is None and not self._needs_tape and runs_compiled_code(self.target.module):
                del output
                return self._capture_again_compiled(tokens, graph)
        if known is not None and self.graphs:
            graph.adopt_labels(self.graphs[max(self.graphs)])
        self.graphs[tokens] = graph
        self.outputs[tokens] = map_tensors(self._unowned, output)
        pool_bytes = self.pool.reserved_bytes() - self._pool_bytes
        self._pool_bytes += pool_bytes
        return BucketCapture(
            tokens,
            "captured",
            warmup_ms=(warmed_up - started) * 1e3,
            capture_ms=(captured - warmed_up) * 1e3,
            pool_bytes=pool_bytes,
            driver_bytes=driver_bytes,
            eager_peak_bytes=peak_bytes,
            compiled_at=tuple(dict.fromkeys(compiled_at)),
        )

    def _unowned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Let the pool have its memory back when nothing needs it; what the pool doesn't own is kept."""
        assert self.pool is not None
        is_pools = tensor.device.type == self.target.device.type and not is_sparse(tensor) and self.pool.owns(tensor)
        return unowned_alias(tensor) if is_pools else tensor

    def _capture_again_compiled(self, tokens: int, uncompiled: BreakableCUDAGraph) -> BucketCapture:
        """Capture without the tape, under whose dispatch mode compiled code does not run as such."""
        result = self._warm_up_and_capture(tokens)
        self.graphs[tokens].adopt_labels(uncompiled)
        uncompiled.reset()
        return result

    def _warm_up(self, device: Device, tokens: int) -> int | None:
        """Run the target eagerly; return the most bytes that it allocated at once."""
        if self.graphs and self._prefixes:
            try:
                with cut_to(self.target.module, self._prefixes) as shorter:
                    return device.peak_bytes(lambda: self.target.run(shorter, self.inputs.views(tokens)))[0]
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self._prefixes = {}  # a model that does not run on fewer layers is warmed up whole
        peak_bytes = None
        for _ in range(self._num_warmups):
            peak_bytes, _ = device.peak_bytes(lambda: self.target(self.inputs.views(tokens)))
        return peak_bytes

    def _plan_pool(self, device: Device, views: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
        """Choose the arenas of the pool by a rehearsal of a few layers of each kind, which stand for all."""
        if not device.splits_blocks or not self._tape:
            return ()  # a rehearsal is a dispatch mode too
        try:
            with torch.inference_mode():
                module, device_type = self.target.module, self.target.device.type
                events = rehearse(lambda shorter: self._forward(shorter, views), module, device_type, self._prefixes)
        except Exception:  # noqa: BLE001  what fails here fails in the capture too, and there the tape says where
            return ()
        return plan_arenas(events)

    def _known_externals(self) -> list[torch.Tensor]:
        return [*module_tensors(self.target.module), *self.inputs.buffers]

    def _forward(self, module: nn.Module, views: Mapping[str, torch.Tensor]) -> Any:
        if self._everything_eager:
            return call_break(self.target.run, (module, views), {}, BreakLabel(self.target.name, source="debug"))
        return self.target.run(module, views)


@contextlib.contextmanager
def _silent_logging() -> Iterator[None]:
    """Let `logging` print no traceback for a record that it can't format: the tape refuses to print a tensor itself."""
    global _num_silent, _raises
    with _silencing:
        if not _num_silent:
            _raises, logging.raiseExceptions = logging.raiseExceptions, False
        _num_silent += 1
    try:
        yield
    finally:
        with _silencing:
            _num_silent -= 1
            if not _num_silent:
                logging.raiseExceptions = _raises
