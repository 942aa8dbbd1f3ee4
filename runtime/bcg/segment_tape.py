"""What the tape notes of one segment: its operations, and what it reads from outside, writes and allocates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from bcg.errors import Place
from bcg.structure import storage_address


class Operation(NamedTuple):
    """One operation of a segment and where it came from.

    Attributes:
        name: Such as ``aten.mm.default``.
        module: Path of the innermost module whose forward was running; empty outside any module.
        file: File of the innermost line that is neither torch's nor bcg's.
        line: Its line number.
    """

    name: str
    module: str
    file: str
    line: int

    @property
    def place(self) -> Place:
        return Place(self.name, self.module or None, f"{self.file}:{self.line}" if self.file else None)


class FirstRead(NamedTuple):
    """Who read an external first, and where its memory was then: its address, and the key of its storage."""

    operation: Operation
    address: int
    storage: int


@dataclass
class SegmentTape:
    """What one segment reads and writes.

    Attributes:
        operations: In program order.
        externals: Tensors that it reads and that the capture did not make, by storage; held here.
        first_reads: Of the externals, by storage.
        written_externals: Keys of those that it also writes.
    """

    operations: list[Operation] = field(default_factory=list)
    externals: dict[int, Tensor] = field(default_factory=dict)
    first_reads: dict[int, FirstRead] = field(default_factory=dict)
    written_externals: set[int] = field(default_factory=set)

    @property
    def external_bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.externals.values())

    def moved_externals(self) -> Iterator[tuple[Tensor, FirstRead]]:
        """Yield the externals whose memory was freed or exchanged after the capture: the segment reads garbage."""
        for key, tensor in self.externals.items():
            first_read = self.first_reads[key]
            if storage_address(tensor) != first_read.address:
                yield tensor, first_read
