"""The yardstick for results of other kernels than eager's: how far eager itself is from exact.

Compiled code rounds elsewhere than eager does, so neither of the two is right to the last bit. Both are compared
with what eager gives in a wider dtype, float32 for half precision and float64 for float32, and the error of the one
may not exceed twice the error of the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bcg.device import find_device
from bcg.device.precision import full_precision
from bcg.errors import first_line
from bcg.inputs import Batch
from bcg.state import ModelState
from bcg.structure import is_wrapped, map_tensors, tensors_in
from bcg.sweep import is_out_of_memory
from bcg.target import Target
from bcg.warmup import outermost_layers

FACTOR = 2.0
"""How many times eager's own error is allowed."""
FLOOR = 1e-7
"""An error that is always allowed: about one rounding in float32, so that 0 may be compared with 0."""

_WIDER = {"float16": torch.float32, "bfloat16": torch.float32, "float32": torch.float64}
_WIDENED = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class ExactErrors:
    """Errors against exact: norms of the difference, over the norm of the exact result (absolute where that is 0).

    Attributes:
        dtype: What exact was computed in.
        result: Error of the result that is judged.
        eager: Error of eager in the target's own dtype.
    """

    dtype: str
    result: float
    eager: float

    @property
    def excess(self) -> float:
        """The result's error over what is allowed."""
        return self.result / (FACTOR * self.eager + FLOOR)

    @property
    def within(self) -> bool:
        """Whether the result is about as right as eager."""
        return self.excess <= 1

    def joined(self, other: ExactErrors) -> ExactErrors:
        """Return the worst errors of two runs."""
        return ExactErrors(self.dtype, max(self.result, other.result), max(self.eager, other.eager))

    def __str__(self) -> str:
        return (
            f"its error against {self.dtype} is {self.result:.2g}, eager's own {self.eager:.2g}: "
            "expected at most twice that"
        )


def exact_errors(eager: Tensor, got: Tensor, exact: Tensor) -> ExactErrors:
    """Compare a result and eager's with the exact one, where eager's is finite; all of one shape and device."""
    finite = eager.isfinite()
    scale = _norm(torch.where(finite, exact, 0.0)) or 1.0

    def error(result: Tensor) -> float:
        return _norm(torch.where(finite, result.to(exact.dtype) - exact, 0.0)) / scale

    return ExactErrors(_name(exact.dtype), error(got), error(eager))


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Lack:
    """Why there is no exact result, and what helps."""

    cause: str
    remedy: str


@dataclass(frozen=True)
class Exact:
    """What eager gives in a wider dtype.

    Attributes:
        results: By bucket, one a batch; in host memory, so that the device has none of them while modes are prepared.
        lack: Why a bucket has none; None if each has its results.
    """

    results: dict[int, list[Any]] = field(default_factory=dict)
    lack: Lack | None = None


def exact_results(
    target: Target,
    run: Callable[[Batch], Any],
    batches: Mapping[int, Sequence[Batch]],
    eager: Mapping[int, Sequence[Any]],
) -> Exact:
    """Run eager in a wider dtype, and leave the target as it was: weights, their memory, and what forwards change.

    Args:
        target: What is run.
        run: Runs a batch eagerly.
        batches: By bucket.
        eager: What eager gave for them in the target's own dtype; a bucket without results is left out.
    """
    dtype = _WIDER.get(target.info.dtype)
    if dtype is None:
        cause = f"weights in {target.info.dtype} have no wider dtype to be compared in"
        return Exact(lack=Lack(cause, "judge by the relative error whether the mode is right"))
    if target.alignment is not None or is_wrapped(map(type, target.module.parameters())):
        cause = "its weights are sharded or otherwise wrapped, and are not converted"
        return Exact(lack=Lack(cause, "compare a smaller model of the same architecture in one process"))
    results: dict[int, list[Any]] = {}
    lack = None
    try:
        with ModelState(target.module).kept(), full_precision(), widened(target.module, dtype):
            for tokens, expected in eager.items():
                try:
                    found = [_kept(run(_widened_batch(batch, dtype))) for batch in batches[tokens]]
                except Exception as error:  # noqa: BLE001 - eager is right as it is; only its yardstick is missing
                    lack = _lack(error, dtype)
                    continue
                if _serve(expected, found, dtype):
                    results[tokens] = found
                else:
                    lack = _unfit(f"eager's results have no counterpart in {_name(dtype)}", dtype)
    except Exception as error:  # noqa: BLE001 - as above, before the first forward
        lack = _lack(error, dtype)
    find_device(target.device).empty_cache()
    return Exact(results, lack)


def _lack(error: Exception, dtype: torch.dtype) -> Lack:
    if is_out_of_memory(error):
        remedy = "give smaller token counts, or fewer --modes, which share the device"
        return Lack(f"eager in {_name(dtype)} does not fit into memory", remedy)
    return _unfit(f"eager does not run in {_name(dtype)}: {type(error).__name__}: {first_line(error)}"[:300], dtype)


def _unfit(cause: str, dtype: torch.dtype) -> Lack:
    return Lack(cause, f"see what in the forward assumes another dtype than {_name(dtype)}")


def _kept(output: Any) -> Any:
    return map_tensors(lambda tensor: tensor.to("cpu", copy=True), output)


def _serve(eager: Sequence[Any], exact: Sequence[Any], dtype: torch.dtype) -> bool:
    """Tell whether exact results are of the wide dtype, and have a number wherever eager has one."""
    ones, others = tensors_in(list(eager)), tensors_in(list(exact))
    return len(ones) == len(others) and all(_serves(one, other, dtype) for one, other in zip(ones, others, strict=True))


def _serves(eager: Tensor, exact: Tensor, dtype: torch.dtype) -> bool:
    if eager.shape != exact.shape:
        return False
    if not eager.is_floating_point():
        return eager.dtype == exact.dtype
    return exact.dtype == dtype and bool((exact.isfinite() | ~eager.isfinite().cpu()).all())


def _widened_batch(batch: Batch, dtype: torch.dtype) -> Batch:
    inputs = {name: value.to(dtype) if _is_narrow(value, dtype) else value for name, value in batch.inputs.items()}
    return replace(batch, inputs=inputs)


@contextlib.contextmanager
def widened(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, parameters and buffers of a narrower floating dtype have wide copies of their data.

    Those of layers have them only while their layer runs, so memory need hold no more than one wide layer beside the
    module. The narrow data stays where it is; afterwards it is in place again.

    Args:
        module: Of plain tensors.
        dtype: ``float32`` or ``float64``.
    """
    layers = outermost_layers(module)
    inside = {id(part) for layer in layers for part in layer.modules()}
    outside = [part for part in module.modules() if id(part) not in inside]
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_widened_while_it_runs(layer, dtype))
        held: list[tuple[Tensor, Tensor]] = []
        stack.callback(_put_back, held)
        _widen(outside, dtype, held)
        yield


@contextlib.contextmanager
def _widened_while_it_runs(layer: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    held: list[tuple[Tensor, Tensor]] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_: _widen(layer.modules(), dtype, held), prepend=True),
        layer.register_forward_hook(lambda *_: _put_back(held), always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        _put_back(held)


def _widen(modules: Iterable[nn.Module], dtype: torch.dtype, held: list[tuple[Tensor, Tensor]]) -> None:
    """Give the modules' own tensors wide copies of their data, and note in `held` what they had."""
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and _is_narrow(tensor, dtype):
                held.append((tensor, tensor.data))
                tensor.data = tensor.data.to(dtype)


def _put_back(held: list[tuple[Tensor, Tensor]]) -> None:
    while held:
        tensor, data = held.pop()
        tensor.data = data


def _is_narrow(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype in _WIDENED and tensor.dtype.itemsize < dtype.itemsize
