"""What a graph froze that eager would have done otherwise: a branch, a number, a tensor, a break, a random stream.

Three forwards are compared operation by operation: the captured one, an eager one with the inputs of the capture,
and an eager one with the inputs of the batch that did not match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcg.checking.findings import make_card, module_line
from bcg.checking.plan import Trial, batch_of, poisoned_padding
from bcg.checking.state import ModelState, Snapshot
from bcg.checking.trace import ForwardTrace, trace_forward
from bcg.graph import BreakableCUDAGraph
from bcg.inputs import Batch
from bcg.report import Card
from bcg.runner import GraphRunner
from bcg.structure import tensors_in
from bcg.sweep import INPUT_SEED
from bcg.tape import Operation
from bcg.target import make_batch


@dataclass(frozen=True)
class Evidence:
    """What suspects are read from.

    Attributes:
        captured: Operations of the graph's segments, in order.
        num_captured_breaks: Breaks of the graph.
        at_capture: An eager forward with the inputs of the capture.
        now: An eager forward with the inputs of the failed trial.
        again: The same once more, the random generators not put back.
        recorded: Tensors that the first capture read from outside, by address.
        names: Where the module tree holds tensors after `now`: attribute path, and whether in a container, by address.
        inputs: Addresses of the static inputs, of both captures.
    """

    root: nn.Module
    captured: Sequence[Operation]
    num_captured_breaks: int
    at_capture: ForwardTrace
    now: ForwardTrace
    again: ForwardTrace
    recorded: dict[int, Tensor]
    names: dict[int, tuple[str, bool]]
    inputs: frozenset[int]


def gather(first: GraphRunner, second: GraphRunner, trial: Trial, state: ModelState, base: Snapshot) -> Evidence:
    """Run the forwards that are compared.

    Args:
        first: The runner whose replay did not match.
        second: A fresh capture of the trial's bucket.
        trial: What did not match.
        state: Restored before every run.
        base: What it is restored to.
    """
    target = first.target
    generator = torch.Generator(target.device).manual_seed(INPUT_SEED)
    captured_batch = make_batch(target, (trial.tokens,), generator)
    batch, padding = batch_of(trial, target), poisoned_padding(trial, target)
    state.restore(base)
    at_capture = _trace(second, captured_batch, None)
    state.restore(base)
    now = _trace(second, batch, padding)
    names = dict(_names(target.module))
    state.restore(base, generators=False)
    again = _trace(second, batch, padding)
    state.restore(base)
    graph = _taped_graph(first, trial.tokens)
    state.restore(base)
    buffers = {
        tensor.untyped_storage().data_ptr()
        for runner in (first, second)
        for tensor in runner.input_views(trial.tokens).values()
    }
    return Evidence(
        root=target.module,
        captured=[operation for segment in graph.segments for operation in segment.tape.operations],
        num_captured_breaks=graph.num_breaks,
        at_capture=at_capture,
        now=now,
        again=again,
        recorded=_externals(graph),
        names=names,
        inputs=frozenset(buffers),
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


def _externals(graph: BreakableCUDAGraph) -> dict[int, Tensor]:
    return {
        tensor.untyped_storage().data_ptr(): tensor
        for segment in graph.segments
        for tensor in segment.tape.externals.values()
    }


def suspect(evidence: Evidence) -> Card | None:
    """Return the first thing that explains why the graph computes something else; None if nothing shows."""
    for look in (_missing_break, _asks_whether_capturing, _random_stream, _branch, _number, _replaced_tensor):
        card = look(evidence)
        if card is not None:
            return card
    return None


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
    for operation, reads in zip(evidence.now.operations, evidence.now.reads, strict=True):
        for address in reads:
            if address in evidence.recorded or address in evidence.inputs:
                continue
            name, in_container = evidence.names.get(address, ("", False))
            if not name and (address in evidence.now.made_in_breaks or evidence.now.externals[address].dim() == 0):
                continue  # the result of a break, or a Python number
            return _card(
                evidence,
                "S8" if in_container else "S4",
                f"eager reads {name or 'a tensor'}, the graph the one that was there when it was captured",
                operation,
            )
    freed = [tensor for tensor in evidence.recorded.values() if tensor.untyped_storage().nbytes() == 0]
    if freed:
        return _card(evidence, "S5", f"a tensor of {tuple(freed[0].shape)} that the graph reads was freed", None)
    return None


def _names(root: nn.Module) -> Iterator[tuple[int, tuple[str, bool]]]:
    for path, module in root.named_modules():
        for name, value in [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]:
            joined = f"{path}.{name}" if path else name
            if isinstance(value, Tensor):
                yield value.untyped_storage().data_ptr(), (joined, False)
            elif isinstance(value, (dict, list, tuple)) and not name.startswith("_"):
                for tensor in tensors_in(value):
                    yield tensor.untyped_storage().data_ptr(), (joined, True)


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
    if operation is None:
        return make_card(hazard, title)
    module = operation.module if operation.module in dict(evidence.root.named_modules()) else ""
    line = f"{operation.file}:{operation.line}" if operation.file else module_line(evidence.root, module)
    return make_card(hazard, title, module=module, source_line=line, operation=operation.name)
