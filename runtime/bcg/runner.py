"""`GraphRunner`: serves batches of any size from the captured graphs of a target."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from bcg.breaks import are_inline
from bcg.buckets import check_buckets, pick_bucket, token_counts
from bcg.context import ForwardContext, forward_context
from bcg.device import find_device
from bcg.device.base import Pool
from bcg.device.cudnn_builders import planned_ahead
from bcg.errors import BcgError, ReplayError, UsageError
from bcg.graph import BreakableCUDAGraph, Turn
from bcg.inputs import SEQUENCE_INDEX, Batch, refuse_unlike, with_numbers
from bcg.rules import refuse_unmet
from bcg.structure import map_tensors, storage_key
from bcg.sweep import BucketCapture, Sweep
from bcg.target import Target


class GraphRunner:
    """Serves a target from captured graphs, one a bucket.

    Life: after `capture` the runner owns the static inputs, the pool and a graph for each captured bucket; it
    keeps no batch. What `replay` returns lies in the pool and is valid until the next replay or capture, and no longer
    than the runner lives and is not reset; clone it to keep it.

    Weights may change in place (`load_state_dict`, a merged adapter), and replays use the new ones. Weights that were
    put in place of others (``assign=True``, a new `Parameter`, ``.to(dtype)``) are not seen: capture again.

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

    Raises:
        UsageError: `target` is none.
    """

    def __init__(
        self, target: Target, *, num_warmups: int = 1, tape: bool = True, everything_eager: bool = False
    ) -> None:
        if not isinstance(target, Target):
            raise UsageError(
                f"a runner captures a target, got {type(target).__name__}",
                hint="bcg.make_target(module, make_inputs) or bcg.load_target(model) makes one",
            )
        self.target = target
        self.num_fallbacks = 0
        self._num_warmups = num_warmups
        self._tape = tape
        self._everything_eager = everything_eager
        self._sweep: Sweep | None = None
        self._turn = Turn()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("what a runner captured lives in this process, and can't be copied or pickled: capture again")

    @property
    def graphs(self) -> dict[int, BreakableCUDAGraph]:
        """The captured graphs by bucket."""
        return dict(self._sweep.graphs) if self._sweep is not None else {}

    @property
    def pool(self) -> Pool | None:
        """The one pool of all graphs."""
        return self._sweep.pool if self._sweep is not None else None

    def input_views(self, tokens: int) -> dict[str, torch.Tensor]:
        """The static inputs of a bucket.

        Raises:
            ReplayError: Nothing was captured, or nothing so large.
        """
        return self._captured().inputs.views(tokens)

    def written_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that segments write to, as far as the tape followed: a replay writes to the static ones.

        Raises:
            ReplayError: Nothing was captured.
        """
        captured = self._captured()
        written = {
            key
            for graph in captured.graphs.values()
            for segment in graph.segments
            for key in segment.tape.written_externals
        }
        views = captured.inputs.views(min(captured.graphs))
        return tuple(name for name, view in views.items() if storage_key(view) in written)

    @property
    def num_replays(self) -> int:
        """Graph replays so far; a run that replayed nothing proves nothing."""
        return sum(graph.num_replays for graph in self.graphs.values())

    def capture(
        self, buckets: Iterable[int], on_bucket: Callable[[BucketCapture], None] | None = None
    ) -> list[BucketCapture]:
        """Capture the target at each bucket, the largest first, all into one pool.

        Warm-ups and captures are forwards: what those write, such as a cache in a buffer, they write (hazard S13).

        Args:
            buckets: Token counts.
            on_bucket: Called with each bucket's result as soon as it is there; with that of a failed one too,
                before its error is raised.

        Returns:
            One result a bucket, in the order of capture.

        Raises:
            UsageError: The buckets are no numbers of tokens that the target takes; what was captured before is kept.
            CaptureError: A bucket could not be captured; nothing of it is left, earlier buckets are kept.
        """
        ordered = check_buckets(sorted(set(token_counts(buckets))))[::-1]
        limit = self.target.max_tokens
        if limit is not None and ordered[0] > limit:
            raise UsageError(
                f"{self.target.name} has positions for {limit} tokens, asked for a bucket of {ordered[0]}",
                hint=f"give --tokens up to {limit}",
            )
        self.reset()
        self._sweep = Sweep(
            self.target,
            ordered[0],
            num_warmups=self._num_warmups,
            tape=self._tape,
            everything_eager=self._everything_eager,
        )
        results = []
        with _frozen_garbage(), planned_ahead(ordered):
            for tokens in ordered:
                try:
                    result = self._sweep.capture_bucket(tokens)
                except BcgError as error:
                    if on_bucket is not None:
                        on_bucket(BucketCapture(tokens, "failed", error=error.message))
                    raise
                results.append(result)
                if on_bucket is not None:
                    on_bucket(result)
                if list(self._sweep.graphs) == [tokens] and not (self._everything_eager or are_inline()):
                    labels = (step.label for step in self._sweep.graphs[tokens].breaks)
                    refuse_unmet(self.target.break_rules, labels, self.target.name)
        find_device(self.target.device).empty_cache()
        return results

    def replay(
        self,
        batch: Batch,
        padding: Mapping[str, torch.Tensor] | None = None,
        *,
        through: Callable[[BreakableCUDAGraph], None] = BreakableCUDAGraph.replay,
    ) -> Any:
        """Run a batch from the graph of the smallest bucket that holds it.

        A batch above the largest bucket runs eagerly and is counted in `num_fallbacks`.

        Args:
            batch: What to run.
            padding: Inputs for the padding rows, in place of zeros; for checks.
            through: Runs the bucket's graph; a profiler looks at each step on the way.

        Returns:
            What the target returns, cut to the batch's rows.

        Raises:
            ReplayError: Nothing was captured, the inputs are not like those of the capture, several requests
                are given to a target that takes one at a time, or another batch is being run.
        """
        batch = self._accepted(batch)
        if self.target.alignment is not None:
            self.target.alignment.tick()
        captured = self._captured()
        tokens = pick_bucket(batch.num_tokens, sorted(captured.graphs))
        if tokens is None:
            self.num_fallbacks += 1
            return self.eager(batch)
        with self._turn, forward_context(batch.context()):
            captured.inputs.load(batch.inputs, tokens, batch.num_tokens, padding)
            through(captured.graphs[tokens])
        return self._cut(captured.outputs[tokens], batch.num_tokens)

    def eager(self, batch: Batch) -> Any:
        """Run a batch eagerly, unpadded, on a copy of its inputs: a forward may change them in place.

        Raises:
            ReplayError: The inputs are not those that the target takes, or several requests are given to one that
                takes one at a time.
        """
        batch = self._accepted(batch)
        refuse_unlike(self.target.input_specs, batch.inputs, batch.num_tokens)
        with forward_context(batch.context()):
            return self.target(batch.copied_inputs())

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
        batch = self._accepted(batch)
        captured = self._captured()
        tokens = pick_bucket(batch.num_tokens, sorted(captured.graphs))
        if tokens is None:
            raise ReplayError(f"no captured bucket holds {batch.num_tokens} tokens")
        with self._turn, forward_context(context or batch.context()):
            captured.inputs.load(batch.inputs, tokens, batch.num_tokens, padding)
            return self._cut(self.target(captured.inputs.views(tokens)), batch.num_tokens)

    def reset(self) -> None:
        """Free the graphs, the pool and the static inputs."""
        for graph in self.graphs.values():
            graph.reset()
        self._sweep = None

    def _captured(self) -> Sweep:
        if self._sweep is None or not self._sweep.graphs:
            raise ReplayError("no bucket was captured", hint="call capture() with the token counts to serve")
        return self._sweep

    def _accepted(self, batch: Batch) -> Batch:
        """Refuse what the target can't take; number the requests where it wants that and the batch does not say it."""
        if len(batch.request_lengths) > 1 and not self.target.packs_requests:
            raise ReplayError(
                f"{self.target.name} takes one request at a time, got a batch of {len(batch.request_lengths)}",
                hint="run each request on its own, or break at what lets their rows reach each other",
            )
        if self.target.numbers_requests and SEQUENCE_INDEX not in batch.inputs:
            inputs = with_numbers(batch.inputs, batch.request_lengths, self.target.device)
            return replace(batch, inputs=inputs)
        return batch

    def _cut(self, output: Any, num_tokens: int) -> Any:
        dims = iter(self.target.output_token_dims)

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            dim = next(dims)
            return tensor if dim is None else tensor.narrow(dim, 0, num_tokens)

        return map_tensors(cut, output)


@contextlib.contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Spare the collector the model: a full collection walks every module and takes longer than a capture."""
    if gc.get_freeze_count():  # the caller's own: unfreezing would undo it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
