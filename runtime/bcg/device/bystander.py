"""A recorder that records nothing: for following an eager forward with the tape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


class Bystander:
    """Executes operations as they come."""

    num_side_streams = 0
    runs_while_recording = True

    def on_stream(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def begin(self) -> None:
        return None

    def execute(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)

    def is_intact(self) -> bool:
        return True

    def end(self) -> None:
        return None

    def abort(self) -> None:
        return None

    def allocate(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        raise NotImplementedError("nothing is captured, so there are no boundaries")

    def feed(self, boundary: Tensor, result: Tensor) -> Callable[[Tensor], Any]:
        return boundary.copy_
