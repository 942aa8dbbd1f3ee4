"""What every module takes and gives in one forward."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from bcg.checking.outputs import EventKey, keeping_outputs


class Refuses(nn.Module):
    refuses = True

    def forward(self, x: Tensor) -> Tensor:
        if self.refuses:
            raise ValueError("refused")
        return x + 1


class Tries(nn.Module):
    """Goes on where the module inside refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = Refuses(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        with contextlib.suppress(ValueError):
            x = self.inner(x)
        result: Tensor = self.last(x)
        return result


def test_a_module_that_raised_has_been_left() -> None:
    root = Tries()
    with keeping_outputs(root) as events:
        root(torch.ones(2))
    assert [event.parent for event in events if event.key == EventKey("last", "input", 0)] == [""]
    assert events[-1].key == EventKey("", "output", 0)


def test_a_forward_that_raised_is_of_no_more_interest() -> None:
    root = nn.Sequential(Refuses())
    with keeping_outputs(root) as events:
        with pytest.raises(ValueError, match="^refused$"):
            root(torch.ones(2))
        root[0].refuses = False
        root(torch.ones(2))
    assert {event.key.call for event in events} == {0}
    assert len(events) == 4
