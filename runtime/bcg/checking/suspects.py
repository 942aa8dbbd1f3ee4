"""What a graph froze that eager would have done otherwise: a branch, a number, a tensor, a break, a random stream.

Three forwards are compared operation by operation: the captured one, an eager one with the inputs of the capture,
and an eager one with the inputs of the batch that did not match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcg.checking.cards import attribute_card, operation_card
from bcg.checking.places import split_path
from bcg.checking.plan import Trial, batch_of, poisoned_padding
from bcg.checking.seeding import find_seeding
from bcg.checking.trace import ForwardTrace, trace_forward
from bcg.graph import BreakableCUDAGraph
from bcg.inputs import Batch
from bcg.report import Card
from bcg.runner import GraphRunner
from bcg.segment_tape import FirstRead, Operation
from bcg.state import ModelState, Snapshot
from bcg.structure import storage_key
from bcg.sweep import INPUT_SEED
from bcg.target import make_batch


@dataclass(frozen=True)
class Evidence:
    """What suspects are read from.

    Attributes:
        captured: Operations of the graph's segments, in order.
        num_captured_breaks: Breaks of the graph.
        at_capture: An eager forward with the inputs of the capture, after another as warm-up.
        now: An eager forward with the inputs of the failed trial.
        again: The same once more, the random generators not put back.
        warm: The same once more, nothing put back.
        recorded: Addresses of tensors that the capture read from outside.
        replaced_at: Operations of the capture that read one from outside where eager now reads another.
        names: Where the module tree holds tensors before `now`: attribute path by address.
        names_after: The same after it.
        inputs: Addresses of the static inputs.
        seeding: The first call of eager that sets the state of a random generator.
    """

    root: nn.Module
    captured: Sequence[Operation]
    num_captured_breaks: int
    at_capture: ForwardTrace
    now: ForwardTrace
    again: ForwardTrace
    warm: ForwardTrace
    recorded: frozenset[int]
    replaced_at: frozenset[Operation]
    names: dict[int, str]
    names_after: dict[int, str]
    inputs: frozenset[int]
    seeding: Operation | None

    @property
    def follows_state(self) -> bool:
        """Whether eager does something else once a forward has changed the state that is put back between runs."""
        now, again, warm = map(self._program, (self.now, self.again, self.warm))
        return now == again != warm

    def _program(self, trace: ForwardTrace) -> list[tuple[Operation, str, list[str]]]:
        """Return a run's operations, the numbers that each was given, and the tensors of the module tree."""
        return [
            (operation, repr(numbers), [self.names[address] for address in reads if address in self.names])
            for operation, numbers, reads in zip(trace.operations, trace.numbers, trace.reads, strict=True)
        ]


def gather(runner: GraphRunner, trial: Trial, state: ModelState, base: Snapshot) -> Evidence:
    """Run the forwards that are compared.

    Args:
        runner: Whose replay did not match.
        trial: What did not match.
        state: Restored before every run.
        base: What it is restored to.
    """
    target = runner.target
    generator = torch.Generator(target.device).manual_seed(INPUT_SEED)
    captured_batch = make_batch(target, (trial.tokens,), generator)
    batch, padding = batch_of(trial, target), poisoned_padding(trial, target)
    state.restore(base)
    runner.eager_padded(captured_batch)
    at_capture = _trace(runner, captured_batch, None)
    state.restore(base)
    names = _names(state)
    now = _trace(runner, batch, padding)
    names_after = _names(state)
    state.restore(base, generators=False)
    again = _trace(runner, batch, padding)
    warm = _trace(runner, batch, padding)
    state.restore(base)
    seeding = find_seeding(lambda: runner.eager_padded(batch, padding))
    state.restore(base)
    graph = _taped_graph(runner, trial.tokens)
    state.restore(base)
    buffers = {tensor.untyped_storage().data_ptr() for tensor in runner.input_views(trial.tokens).values()}
    return Evidence(
        root=target.module,
        captured=[operation for segment in graph.segments for operation in segment.tape.operations],
        num_captured_breaks=graph.num_breaks,
        at_capture=at_capture,
        now=now,
        again=again,
        warm=warm,
        recorded=frozenset(first_read.address for first_read in _first_reads(graph)),
        replaced_at=_replaced_at(graph, now),
        names=names,
        names_after=names_after,
        inputs=frozenset(buffers),
        seeding=seeding,
    )


def _taped_graph(runner: GraphRunner, tokens: int) -> BreakableCUDAGraph:
    """Return the bucket's graph if the tape followed its capture, else that of another capture."""
    graph = runner.graphs[tokens]
    if any(segment.tape.operations for segment in graph.segments):
        return graph
    again = GraphRunner(runner.target)
    again.capture((tokens,))
    return again.graphs[tokens]


def _trace(runner: GraphRunner, batch: Batch, padding: dict[str, Tensor] | None) -> ForwardTrace:
    return trace_forward(
        lambda context: runner.eager_padded(batch, padding, context), batch.request_lengths, runner.target.device
    )


def _first_reads(graph: BreakableCUDAGraph) -> list[FirstRead]:
    return [first_read for segment in graph.segments for first_read in segment.tape.first_reads.values()]


def _replaced_at(graph: BreakableCUDAGraph, now: ForwardTrace) -> frozenset[Operation]:
    read: dict[Operation, set[int]] = {}
    for operation, addresses in zip(now.operations, now.reads, strict=True):
        read.setdefault(operation, set()).update(addresses)
    return frozenset(
        first_read.operation
        for first_read in _first_reads(graph)
        if first_read.address not in read.get(first_read.operation, {first_read.address})
    )


def suspect(evidence: Evidence) -> Card | None:
    """Return the first thing that explains why the graph computes something else; None if nothing shows."""
    looks = (
        _missing_break,
        _asks_whether_capturing,
        _stale_cache,
        _random_stream,
        _branch,
        _number,
        _replaced_tensor,
        _seeding,
    )
    return next((card for card in (look(evidence) for look in looks) if card is not None), None)


def _missing_break(evidence: Evidence) -> Card | None:
    if evidence.at_capture.num_breaks > evidence.num_captured_breaks:
        index = _first_difference(evidence.captured, evidence.at_capture.operations)
        extra = evidence.captured[index] if index is not None and index < len(evidence.captured) else None
        return _card(
            evidence,
            "S15",
            f"eager runs {evidence.at_capture.num_breaks} breaks, the capture made {evidence.num_captured_breaks}",
            extra,
        )
    if evidence.now.context_reads:
        index = min(evidence.now.context_reads[0], len(evidence.now.operations) - 1)
        operation = evidence.now.operations[index]
        return _card(evidence, "S15", "it asks, outside a break, how the batch is split into requests", operation)
    return None


def _asks_whether_capturing(evidence: Evidence) -> Card | None:
    """The same inputs, and another program: it depends on being captured."""
    index = _first_difference(evidence.captured, evidence.at_capture.operations)
    if index is None:
        return None
    ours, others = evidence.captured, evidence.at_capture.operations
    operation = ours[index] if index < len(ours) else others[index]
    eager = others[index].name if index < len(others) else "nothing"
    return _card(
        evidence, "S3", f"the capture runs {operation.name} where eager runs {eager}, with the same inputs", operation
    )


def _stale_cache(evidence: Evidence) -> Card | None:
    """The program of the capture runs only where the same size ran before: something is kept for one size."""
    index = _first_difference(evidence.captured, evidence.now.operations)
    if index is None or _first_difference(evidence.captured, evidence.warm.operations) is not None:
        return None
    ours, others = evidence.captured, evidence.now.operations
    operation = others[index] if index < len(others) else ours[index]
    title = f"eager runs {operation.name} for a size that did not run last, the graph relies on what it left"
    return _card(evidence, "S8", title, operation)


def _branch(evidence: Evidence) -> Card | None:
    """Other inputs, and another program: a branch that Python took."""
    index = _first_difference(evidence.at_capture.operations, evidence.now.operations)
    if index is None:
        return None
    ours, others = evidence.at_capture.operations, evidence.now.operations
    operation = others[index] if index < len(others) else ours[index]
    frozen = ours[index].name if index < len(ours) else "nothing"
    return _card(
        evidence, "S1", f"this batch takes another branch: eager runs {operation.name}, the graph {frozen}", operation
    )


def _number(evidence: Evidence) -> Card | None:
    index = _first_other(evidence.at_capture.numbers, evidence.now.numbers)
    if index is None:
        return None
    operation = evidence.now.operations[index]
    frozen, live = _first_pair(evidence.at_capture.numbers[index], evidence.now.numbers[index])
    return _card(evidence, "S2", f"{operation.name} has {frozen} baked in, with this batch it is {live}", operation)


def _random_stream(evidence: Evidence) -> Card | None:
    index = _first_other(evidence.now.numbers, evidence.again.numbers)
    if index is None:
        return None
    operation = evidence.now.operations[index]
    return _card(evidence, "S16", f"{operation.name} has a random number baked in, which eager draws anew", operation)


def _replaced_tensor(evidence: Evidence) -> Card | None:
    """Eager reads a tensor that the graph doesn't know: its own was replaced, or nobody saw this one made."""
    for operation, reads in zip(evidence.now.operations, evidence.now.reads, strict=True):
        for address in reads:
            if address in evidence.recorded or address in evidence.inputs:
                continue
            if evidence.now.externals[address].dim() == 0:
                continue  # a Python number
            card = _unknown_read(evidence, operation, address)
            if card is not None:
                return card
    return None


def _unknown_read(evidence: Evidence, operation: Operation, address: int) -> Card | None:
    """Tell why eager reads a tensor that the graph doesn't know; None where it is merely a break's result."""
    key = storage_key(evidence.now.externals[address])
    name, name_after = evidence.names.get(address, ""), evidence.names_after.get(address, "")
    tensor = name or name_after or f"a tensor of {tuple(evidence.now.externals[address].shape)}"
    if address in evidence.now.made_in_breaks:
        if not name_after and operation not in evidence.replaced_at:
            return None
        title = f"eager reads {tensor}, which a break replaced, the graph the one of its capture"
        return _card(evidence, "S4", title, operation)
    if key in evidence.at_capture.made or (name and name != name_after):
        title = f"eager reads {tensor}, which the forward before it left, the graph the one of its capture"
        if not name:
            return _card(evidence, "S12", title, operation)
        attribute = split_path(evidence.root, name)  # who sets it is to blame, not who reads it
        return attribute_card(evidence.root, "S12", title, attribute, operation=operation.name)
    if key in evidence.now.met:
        title = f"eager reads {tensor}, the graph the one that was there when it was captured"
        return _card(evidence, "S4", title, operation)
    title = f"{operation.name} reads a tensor that no operation of this thread and stream made"
    return _card(evidence, "S14", title, operation)


def _seeding(evidence: Evidence) -> Card | None:
    if evidence.seeding is None:
        return None
    title = f"eager calls {evidence.seeding.name} in every forward, a replay goes on drawing from where it was"
    return _card(evidence, "L9", title, evidence.seeding)


def _names(state: ModelState) -> dict[int, str]:
    """Return the attribute path of every tensor of the module tree by its address."""
    return {tensor.untyped_storage().data_ptr(): path for path, tensor in state.tensors().items()}


def _first_difference(ones: Sequence[Operation], others: Sequence[Operation]) -> int | None:
    return _first(ones, others, lambda one, other: one.name != other.name)


def _first_other(ones: Sequence[Any], others: Sequence[Any]) -> int | None:
    return _first(ones, others, lambda one, other: repr(one) != repr(other), by_length=False)


def _first(
    ones: Sequence[Any], others: Sequence[Any], differ: Callable[[Any, Any], bool], *, by_length: bool = True
) -> int | None:
    for index, (one, other) in enumerate(zip(ones, others, strict=False)):
        if differ(one, other):
            return index
    return min(len(ones), len(others)) if by_length and len(ones) != len(others) else None


def _first_pair(ones: Sequence[Any], others: Sequence[Any]) -> tuple[Any, Any]:
    return next(
        ((one, other) for one, other in zip(ones, others, strict=False) if repr(one) != repr(other)), (ones, others)
    )


def _card(evidence: Evidence, hazard: str, title: str, operation: Operation | None) -> Card:
    return operation_card(evidence.root, hazard, title, operation)
