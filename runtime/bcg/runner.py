"""`GraphRunner`: captures a target over all buckets into one pool, and replays batches of any size."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bcg.alignment import Dropped
from bcg.breaks import BreakLabel, call_break
from bcg.buckets import pick_bucket
from bcg.capture import BreakableCUDAGraphCapture
from bcg.closure import explains, module_tensors
from bcg.collectives import CollectiveWatch
from bcg.context import ForwardContext, forward_context
from bcg.device import find_device
from bcg.device.base import Device, Pool
from bcg.errors import BcgError, CaptureError, ReplayError, UsageError
from bcg.graph import BreakableCUDAGraph
from bcg.inputs import Batch, StaticInputs
from bcg.layout import plan_arenas
from bcg.rehearsal import rehearse
from bcg.structure import map_tensors, unowned_alias
from bcg.target import Target, first_line, make_batch
from bcg.warmup import cut_to, distinct_prefixes

REHEARSED_LAYERS = 3
"""Of each kind of layer, in the rehearsal that plans the pool: the third finds the pool as every later one does."""
INPUT_SEED = 0
"""Seed of the inputs that a bucket is captured with; replay must not depend on their values."""


@dataclass(frozen=True)
class BucketCapture:
    """What the capture of one bucket took.

    Attributes:
        tokens: The bucket.
        status: ``captured``, or ``out of memory``: then the smaller buckets are still tried.
        warmup_ms: Wall time of the eager runs before the capture.
        capture_ms: Wall time of the captured forward; the device's work in it is not waited for.
        pool_bytes: Growth of the graph pool.
        driver_bytes: Growth of device memory outside the caching allocator: the instantiated graphs.
        eager_peak_bytes: Most bytes that the same forward allocates at once when it runs eagerly.
        error: First line of what went wrong.
    """

    tokens: int
    status: Literal["captured", "out of memory"]
    warmup_ms: float = 0.0
    capture_ms: float = 0.0
    pool_bytes: int = 0
    driver_bytes: int = 0
    eager_peak_bytes: int | None = None
    error: str | None = None


class GraphRunner:
    """Serves a target from captured graphs, one a bucket.

    Life: after `capture` the runner owns the static inputs, the pool and a graph for each captured bucket; it
    keeps no batch. What `replay` returns lies in the pool and is valid until the next replay or capture; clone
    it to keep it.

    Args:
        target: What is captured and replayed.
        num_warmups: Eager runs of each bucket before its capture, on the capture stream: libraries, compilers
            and autotuners must have met the very shape (hazards L10, L11). After the first bucket one run of each
            kind of layer is enough, see `bcg.warmup`.
        tape: Let the tape follow the first capture, and the later ones too where that finds externals outside the
            module tree (see `bcg.closure`). Without it only the module tree and the static inputs are held: for
            compiled code, which doesn't run as such under a dispatch mode.
        everything_eager: Run the whole forward as one break: the graph path without any graph, for finding out
            whether a wrong result comes from a graph.

    Attributes:
        num_fallbacks: Batches that no bucket held, and that ran eagerly instead.
    """

    def __init__(
        self, target: Target, *, num_warmups: int = 1, tape: bool = True, everything_eager: bool = False
    ) -> None:
        self.target = target
        self.num_fallbacks = 0
        self._num_warmups = num_warmups
        self._tape = tape
        self._everything_eager = everything_eager
        self._graphs: dict[int, BreakableCUDAGraph] = {}
        self._outputs: dict[int, Any] = {}
        self._inputs: StaticInputs | None = None
        self._pool: Pool | None = None
        self._needs_tape = tape
        self._prefixes: dict[torch.nn.ModuleList, int] = {}

    @property
    def graphs(self) -> dict[int, BreakableCUDAGraph]:
        """The captured graphs by bucket."""
        return dict(self._graphs)

    @property
    def pool(self) -> Pool | None:
        """The one pool of all graphs."""
        return self._pool

    def input_views(self, tokens: int) -> dict[str, torch.Tensor]:
        """The static inputs of a bucket.

        Raises:
            ReplayError: Nothing was captured, or nothing so large.
        """
        if self._inputs is None:
            raise ReplayError("no bucket was captured", hint="call capture() with the token counts to serve")
        return self._inputs.views(tokens)

    @property
    def num_replays(self) -> int:
        """Graph replays so far; a run that replayed nothing proves nothing."""
        return sum(graph.num_replays for graph in self._graphs.values())

    def capture(
        self, buckets: Iterable[int], on_bucket: Callable[[BucketCapture], None] | None = None
    ) -> list[BucketCapture]:
        """Capture the target at each bucket, the largest first, all into one pool.

        Args:
            buckets: Token counts.
            on_bucket: Called with each bucket's result as soon as it is there.

        Returns:
            One result a bucket, in the order of capture.

        Raises:
            CaptureError: A bucket could not be captured; nothing of it is left, earlier buckets are kept.
        """
        ordered = sorted(set(buckets), reverse=True)
        if not ordered:
            raise CaptureError("there is no bucket to capture")
        limit = self.target.max_tokens
        if limit is not None and ordered[0] > limit:
            raise UsageError(
                f"{self.target.name} has positions for {limit} tokens, asked for a bucket of {ordered[0]}",
                hint=f"give --tokens up to {limit}",
            )
        self.reset()
        self._inputs = StaticInputs(self.target.input_specs, ordered[0], self.target.device)
        self._prefixes = distinct_prefixes(self.target.module) if self._num_warmups else {}
        results = []
        with _frozen_garbage():
            for tokens in ordered:
                result = self._capture_bucket(tokens)
                results.append(result)
                if on_bucket is not None:
                    on_bucket(result)
        find_device(self.target.device).empty_cache()
        return results

    def replay(self, batch: Batch, padding: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Run a batch from the graph of the smallest bucket that holds it.

        A batch above the largest bucket runs eagerly and is counted in `num_fallbacks`.

        Args:
            batch: What to run.
            padding: Inputs for the padding rows, in place of zeros; for checks.

        Returns:
            What the target returns, cut to the batch's rows.

        Raises:
            ReplayError: Nothing was captured, the inputs are not like those of the capture, or several requests
                are given to a target that takes one at a time.
        """
        self._check_requests(batch)
        if self.target.alignment is not None:
            self.target.alignment.tick()
        if self._inputs is None or not self._graphs:
            raise ReplayError("no bucket was captured", hint="call capture() with the token counts to serve")
        tokens = pick_bucket(batch.num_tokens, sorted(self._graphs))
        if tokens is None:
            self.num_fallbacks += 1
            return self.eager(batch)
        self._inputs.load(batch.inputs, tokens, batch.num_tokens, padding)
        with forward_context(ForwardContext(batch.request_lengths)):
            self._graphs[tokens].replay()
        return self._cut(self._outputs[tokens], batch.num_tokens)

    def eager(self, batch: Batch) -> Any:
        """Run a batch eagerly, unpadded.

        Raises:
            ReplayError: Several requests are given to a target that takes one at a time.
        """
        self._check_requests(batch)
        with forward_context(ForwardContext(batch.request_lengths)):
            return self.target(batch.inputs)

    def eager_padded(
        self,
        batch: Batch,
        padding: Mapping[str, torch.Tensor] | None = None,
        context: ForwardContext | None = None,
    ) -> Any:
        """Run a batch eagerly on the static inputs of its bucket: the same kernels at the same shapes as replay.

        Args:
            batch: What to run.
            padding: Inputs for the padding rows, in place of zeros.
            context: In place of one made from the batch.

        Raises:
            ReplayError: No captured bucket holds the batch, or several requests are given to a target that takes
                one at a time.
        """
        self._check_requests(batch)
        tokens = pick_bucket(batch.num_tokens, sorted(self._graphs))
        if self._inputs is None or tokens is None:
            raise ReplayError(f"no captured bucket holds {batch.num_tokens} tokens")
        self._inputs.load(batch.inputs, tokens, batch.num_tokens, padding)
        with forward_context(context or ForwardContext(batch.request_lengths)):
            return self._cut(self.target(self._inputs.views(tokens)), batch.num_tokens)

    def reset(self) -> None:
        """Free the graphs, the pool and the static inputs."""
        for graph in self._graphs.values():
            graph.reset()
        self._graphs, self._outputs = {}, {}
        self._inputs = self._pool = None
        self._needs_tape = self._tape

    def _check_requests(self, batch: Batch) -> None:
        if len(batch.request_lengths) > 1 and not self.target.packs_requests:
            raise ReplayError(
                f"{self.target.name} takes one request at a time, got a batch of {len(batch.request_lengths)}",
                hint="its rows of one request reach another one; break at what mixes them, or run each on its own",
            )

    def _capture_bucket(self, tokens: int) -> BucketCapture:
        ranks = self.target.alignment
        if ranks is None:
            return self._try_bucket(tokens)
        ranks.begin(f"the bucket of {tokens} tokens")
        result = self._try_bucket(tokens)
        if result.status != "captured":
            ranks.drop(result.error or result.status)
        errors = ranks.exchange(None if result.status == "captured" else result.error)
        failed = [rank for rank, error in enumerate(errors) if error is not None]
        if not failed:
            return result
        if tokens in self._graphs:
            self._graphs.pop(tokens).reset()
            del self._outputs[tokens]
        return BucketCapture(tokens, "out of memory", error=f"rank {failed[0]}: {errors[failed[0]]}")

    def _try_bucket(self, tokens: int) -> BucketCapture:
        try:
            try:
                return self._warm_up_and_capture(tokens)
            except (torch.OutOfMemoryError, Dropped):
                raise
            except Exception:
                if self._needs_tape or self.target.alignment is not None:
                    raise
                self._needs_tape = True  # the tape says where and why
                return self._warm_up_and_capture(tokens)
        except torch.OutOfMemoryError as error:
            return BucketCapture(tokens, "out of memory", error=first_line(error))
        except Dropped:
            return BucketCapture(tokens, "out of memory")
        except BcgError as error:
            place, hazard = getattr(error, "place", None), getattr(error, "hazard", None)
            raise CaptureError(
                f"bucket of {tokens} tokens: {error.message}", hint=error.hint, place=place, hazard=hazard
            ) from error
        except Exception as error:
            where = f", {error.__notes__[0]}" if getattr(error, "__notes__", None) else ""
            raise CaptureError(
                f"bucket of {tokens} tokens: {type(error).__name__}: {first_line(error)}{where}",
                hint="see --traceback; the forward must run eagerly at this size before it can be captured",
            ) from error

    def _warm_up_and_capture(self, tokens: int) -> BucketCapture:
        assert self._inputs is not None
        graph = BreakableCUDAGraph(self.target.device)
        device = graph.device
        generator = torch.Generator(self.target.device).manual_seed(INPUT_SEED)
        batch = make_batch(self.target, (tokens,), generator)
        self._inputs.load(batch.inputs, tokens, tokens)
        views = self._inputs.views(tokens)
        started = time.perf_counter()
        with forward_context(ForwardContext((tokens,))), device.capture_stream():
            with self._in_step():
                peak_bytes = self._warm_up(device, views)
                if self._pool is None:
                    self._pool = device.new_pool(self._plan_pool(device, views))
            if not self._graphs:
                device.empty_cache()  # what the largest warm-up used is what the pool will need
            before = device.memory(self._pool)
            warmed_up = time.perf_counter()
            known = None if self._needs_tape else self._known_externals()
            ranks = self.target.alignment
            capture = BreakableCUDAGraphCapture(
                graph,
                self._pool,
                # The watchdog thread of NCCL asks for events at any time (hazard L7).
                capture_error_mode="global" if ranks is None else "thread_local",
                known_externals=known,
                alignment=ranks,
            )
            with torch.inference_mode(), capture:
                output = self._forward(views)
            captured = time.perf_counter()
        after = device.memory(self._pool)
        if not self._graphs:
            self._needs_tape = device.needs_tape or (self._tape and not explains(self._known_externals(), graph))
            if self.target.alignment is not None:
                self._needs_tape = any(self.target.alignment.exchange(self._needs_tape))
        self._graphs[tokens] = graph
        self._outputs[tokens] = map_tensors(unowned_alias, output)
        return BucketCapture(
            tokens,
            "captured",
            warmup_ms=(warmed_up - started) * 1e3,
            capture_ms=(captured - warmed_up) * 1e3,
            pool_bytes=after.pool_bytes - before.pool_bytes,
            driver_bytes=after.driver_bytes - before.driver_bytes,
            eager_peak_bytes=peak_bytes,
        )

    def _warm_up(self, device: Device, views: Mapping[str, torch.Tensor]) -> int | None:
        """Run the target eagerly; return the most bytes that it allocated at once."""
        if self._graphs and self._prefixes:
            try:
                with cut_to(self._prefixes):
                    return device.peak_bytes(lambda: self.target(views))[0]
            except torch.OutOfMemoryError:
                raise
            except Exception:
                if self.target.alignment is not None:
                    raise  # all ranks warm up alike, or none goes on
                self._prefixes = {}  # a model that does not run on fewer layers is warmed up whole
        peak_bytes = None
        for _ in range(self._num_warmups):
            peak_bytes, _ = device.peak_bytes(lambda: self.target(views))
        return peak_bytes

    def _plan_pool(self, device: Device, views: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
        """Choose the arenas of the pool by a rehearsal of a few layers of each kind, which stand for all."""
        if not device.splits_blocks:
            return ()
        lengths = {layers: min(len(layers), REHEARSED_LAYERS * prefix) for layers, prefix in self._prefixes.items()}
        with cut_to(lengths), torch.inference_mode():
            events = rehearse(lambda: self._forward(views), self.target.device.type)
        return plan_arenas(events)

    def _in_step(self) -> AbstractContextManager[Any]:
        """Let ranks meet before every collective; compiled code does not run as such under a dispatch mode."""
        ranks = self.target.alignment
        if ranks is None or not self._tape:
            return contextlib.nullcontext()
        return CollectiveWatch(lambda name: ranks.meet(f"{name} while warming up"))

    def _known_externals(self) -> list[torch.Tensor]:
        assert self._inputs is not None
        return [*module_tensors(self.target.module), *self._inputs.buffers]

    def _forward(self, views: Mapping[str, torch.Tensor]) -> Any:
        if self._everything_eager:
            return call_break(self.target, (views,), {}, BreakLabel(self.target.name, source="debug"))
        return self.target(views)

    def _cut(self, output: Any, num_tokens: int) -> Any:
        dims = iter(self.target.output_token_dims)

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            dim = next(dims)
            return tensor if dim is None else tensor.narrow(dim, 0, num_tokens)

        return map_tensors(cut, output)


@contextlib.contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Spare the collector the model: a full collection walks every module and takes longer than a capture."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
