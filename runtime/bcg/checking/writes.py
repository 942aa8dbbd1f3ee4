"""What forwards write besides the module tree's state: parameters, inputs, and tensors that nobody there holds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bcg.context import forward_context
from bcg.dispatch import DispatchMode, written_by
from bcg.input_makers import PROBE_SIZES
from bcg.report import ReportWarning
from bcg.runner import GraphRunner
from bcg.state import ModelState
from bcg.structure import storage_key
from bcg.target import Target, make_batch


def written_parameters(target: Target, others: Mapping[str, Tensor] = MappingProxyType({})) -> dict[str, Tensor]:
    """Run a small forward and return the parameters that it writes, by path; all is left as it was.

    Of a sharded target none are looked for.

    Args:
        target: Whose forward.
        others: Tensors outside the module tree, by name, that it is known to write.
    """
    if target.alignment is not None:
        return {}
    state = ModelState(target.module, others)
    base = state.save()
    generator = torch.Generator(target.device).manual_seed(0)
    batch = make_batch(target, PROBE_SIZES[:1], generator)
    keeping = _KeepingParameters(target)
    try:
        with forward_context(batch.context()), keeping:
            target(batch.inputs)
        written: dict[str, Tensor] = {path: keeping.parameters[path] for path in keeping.contents}
    except Exception:  # noqa: BLE001  what fails here fails in the capture too, and there the tape says where
        written = {}
    with torch.inference_mode():
        for path, contents in keeping.contents.items():
            keeping.parameters[path].copy_(contents)
    state.restore(base)
    return written


class _KeepingParameters(DispatchMode):
    """Copies every parameter before it is first written."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.contents: dict[str, Tensor] = {}
        self.parameters = dict(target.module.named_parameters())
        self._paths = {storage_key(parameter): path for path, parameter in self.parameters.items()}

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for tensor in written_by(function, args, kwargs):
            path = self._paths.get(storage_key(tensor))
            if path is not None and path not in self.contents:
                self.contents[path] = self.parameters[path].clone()
        return function(*args, **kwargs)


def written_outside(runner: GraphRunner) -> dict[str, Tensor]:
    """Return what forwards write beside buffers, attributes and static inputs: parameters, and tensors of nobody."""
    by_segments = written_by_segments(runner)
    return written_parameters(runner.target, by_segments) | by_segments


def written_by_segments(runner: GraphRunner) -> dict[str, Tensor]:
    """Return those of them that segments write, parameters by their paths.

    The tape knows them: those of every bucket on the host device, on a GPU those of the buckets that it followed.
    """
    parameters = {storage_key(tensor): path for path, tensor in runner.target.module.named_parameters()}
    known = {storage_key(tensor) for tensor in ModelState(runner.target.module).look().tensors.values()}
    for tokens in runner.graphs:
        known.update(storage_key(tensor) for tensor in runner.input_views(tokens).values())
    found: dict[int, tuple[str, Tensor]] = {}
    for graph in runner.graphs.values():
        for segment in graph.segments:
            for key in segment.tape.written_externals - known:
                name = parameters.get(key) or f"the tensor of {segment.tape.first_reads[key].operation.place}"
                found[key] = name, segment.tape.externals[key]
    return dict(found.values())


def written_input_warnings(runner: GraphRunner) -> list[ReportWarning]:
    """Warn of inputs that the forward changes in place, as it does with a cache that the caller keeps."""
    names = runner.written_inputs()
    if not names:
        return []
    return [
        ReportWarning(
            code="written-input",
            message=f"the forward writes to its input {', '.join(map(repr, names))}",
            cause="a replay writes to the static input of its bucket, and leaves the caller's tensor as it was",
            remedy="return what it writes, or keep it as a buffer of the module if it must outlast the forward",
        )
    ]
