"""The results of every operation of one eager forward, so that two forwards can be compared one by one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from bcg.checking.trace import numbers_in
from bcg.device import find_device
from bcg.device.bystander import Bystander
from bcg.segment_tape import Operation
from bcg.structure import storage_key, tensors_in
from bcg.tape import Tape

_UNINITIALIZED = re.compile(r"aten\.(new_)?empty")


@dataclass(frozen=True)
class Step:
    """One operation of a run: what it was given beside the forward's own tensors, and copies of what it made."""

    operation: Operation
    is_random: bool
    numbers: tuple[Any, ...]
    outside: tuple[int, ...]
    results: tuple[Tensor, ...]


def keep_results(forward: Callable[[], Any], device: torch.device, *, within: str = "") -> ResultTape:
    """Run `forward` eagerly and keep a copy of what every operation makes, in breaks as well.

    Args:
        forward: One forward of a target.
        device: Of its tensors.
        within: Path of the module whose operations, and those of the modules in it, are kept; by default all.
    """
    tape = ResultTape(device, within)
    with torch.inference_mode(), tape.watching():
        forward()
    return tape


class ResultTape(Tape):
    """Copies what operations make.

    Attributes:
        steps: In program order.
    """

    def __init__(self, device: torch.device, within: str) -> None:
        super().__init__(find_device(device), Bystander())
        self.steps: list[Step] = []
        self._within = within
        self._read: list[StorageWeakRef] = []  # so that no other storage gets the key of one that was read

    def has_made(self, key: int) -> bool:
        return key in self._made

    def refuse(self, name: str, reason: str) -> None:
        return None

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.module_path:  # loading inputs and cutting outputs is no part of the forward
            return function(*args, **kwargs)
        read = [tensor.untyped_storage() for tensor in tensors_in((args, kwargs)) if not self.made(tensor)]
        self._read.extend(map(StorageWeakRef, read))
        outside = tuple(storage._cdata for storage in read)
        result = function(*args, **kwargs)
        for tensor in tensors_in(result):
            if storage_key(tensor) not in outside:
                self.add_made(tensor)
                if _UNINITIALIZED.match(str(function)):
                    tensor.zero_()
        if self._within and not f"{self.module_path}.".startswith(f"{self._within}."):
            return result
        copies = tuple(tensor.clone() for tensor in tensors_in(result) if self.made(tensor))
        is_random = torch.Tag.nondeterministic_seeded in function.tags
        numbers = tuple(numbers_in((args, tuple(kwargs.values()))))
        self.steps.append(Step(self._operation(str(function)), is_random, numbers, outside, copies))
        return result
