"""Cards of a check: each names a row of the catalogue, a place and a remedy."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from torch import Tensor, nn

from bcg.cards import counted, make_card
from bcg.checking.leaks import Leak
from bcg.checking.places import Attribute, attribute_line, module_line, split_path
from bcg.checking.plan import Trial
from bcg.checking.verdicts import Verification
from bcg.inputs import MASK
from bcg.report import Card
from bcg.segment_tape import FirstRead, Operation
from bcg.state import ModelState
from bcg.structure import storage_key

_GIVE_MASK = (
    f"give it an {MASK} of ones, from make_inputs of a factory: padding is zeros there too, and so masks its rows"
)
_COUNT_REAL_ROWS = (
    "do the same for every number of rows, or break there and take the number of real ones from the forward context"
)


def operation_card(root: nn.Module, hazard: str, title: str, operation: Operation | None, *, remedy: str = "") -> Card:
    """Make a card at the place of an operation."""
    if operation is None:
        return make_card(hazard, title)
    module = operation.module if operation.module in dict(root.named_modules()) else ""
    line = f"{operation.file}:{operation.line}" if operation.file else module_line(root, module)
    return make_card(hazard, title, module=module, source_line=line, operation=operation.name, remedy=remedy)


def attribute_card(root: nn.Module, hazard: str, title: str, attribute: Attribute, *, operation: str = "") -> Card:
    """Make a card at the line that changes an attribute of a module."""
    line = attribute_line(root, *attribute)
    return make_card(hazard, title, module=attribute.module, source_line=line, operation=operation)


def moved_card(root: nn.Module, state: ModelState, tensor: Tensor, first_read: FirstRead) -> Card:
    """Name a tensor that a graph reads and that was freed (S5) or given other memory (S4) since the capture."""
    path = next((path for path, held in state.tensors().items() if held is tensor), None)
    name = path or f"a tensor of {tuple(tensor.shape)}"
    if storage_key(tensor) == first_read.storage:
        return operation_card(root, "S5", f"{name}, which the graph reads, was freed", first_read.operation)
    return operation_card(root, "S4", f"{name}, which the graph reads, got other memory", first_read.operation)


def leak_card(
    root: nn.Module, trial: Trial, leak: Leak, by_size: bool, occurrences: int, *, could_mask: bool = False
) -> Card:
    """Name padding that reaches real rows (S10), or a branch (S1) or number (S2) that depends on their number.

    Args:
        root: The module tree.
        trial: A batch of which real rows depend on padding.
        leak: Where.
        by_size: Whether only the number of rows matters.
        occurrences: Batches that show it.
        could_mask: Whether the forward would take a mask that its inputs don't have.
    """
    hazard, remedy = "S10", _GIVE_MASK if could_mask else ""
    title = f"{_padding_changes(trial)} the {counted(trial.num_tokens, 'real row')} in the bucket of {trial.tokens}"
    if by_size:
        hazard, remedy = ("S1" if leak.branches else "S2"), _COUNT_REAL_ROWS
        title = (
            f"{counted(trial.num_tokens, 'row')} alone give{'s' if trial.num_tokens == 1 else ''} something else than "
            f"in the bucket of {trial.tokens}, whatever padding holds"
        )
    module = leak.module or ""
    if leak.operation is not None:
        card = operation_card(root, hazard, title, leak.operation, remedy=remedy)
    else:
        line = "" if leak.module is None else module_line(root, module)
        card = make_card(hazard, title, module=module, source_line=line, remedy=remedy)
    return msgspec.structs.replace(card, occurrences=occurrences, break_option="")


def padded_state_card(root: nn.Module, path: str, trial: Trial) -> Card:
    """Name state that padding rows change, so that a later forward gives something else (S10)."""
    title = (
        f"{_padding_changes(trial)} {path} in the bucket of {trial.tokens}, and a later forward gives something else"
    )
    return attribute_card(root, "S10", title, split_path(root, path))


def _padding_changes(trial: Trial) -> str:
    return f"{counted(trial.num_padding, 'padding row')} change{'s' if trial.num_padding == 1 else ''}"


def constants_card(root: nn.Module) -> Card:
    """Tell that a result has a number, a word or a shape in it that Python makes of the number of rows."""
    return make_card(
        "S2",
        "beside its tensors the result has what Python makes of the number of rows; replay returns its capture's",
        source_line=module_line(root, ""),
        remedy="return tensors only, and make it of them outside of the forward",
    )


def launch_cards(root: nn.Module, verification: Verification) -> list[Card]:
    """Name buckets in which no segment was launched (S20)."""
    idle = [
        bucket.tokens for bucket in verification.buckets if not (bucket.num_launches or bucket.errors or bucket.moved)
    ]
    if not idle:
        return []
    is_empty = all(bucket.is_empty for bucket in verification.buckets)
    why = "the forward runs no operation" if is_empty else "everything ran as breaks"
    title = f"no segment was launched in {_buckets(idle)}: {why}"
    return [make_card("S20", title, source_line=module_line(root, ""))]


def _buckets(tokens: list[int]) -> str:
    return f"the bucket of {tokens[0]}" if len(tokens) == 1 else f"buckets {', '.join(map(str, tokens))}"


def one_a_line(cards: Iterable[Card]) -> list[Card]:
    """Join the cards that say the same of one line in several modules: layers of one kind."""
    groups: dict[tuple[str, str, str], list[Card]] = {}
    for card in cards:
        groups.setdefault((card.hazard, card.source_line, card.title.replace(f"{card.module}.", "", 1)), []).append(
            card
        )
    return [
        msgspec.structs.replace(group[0], occurrences=sum(card.occurrences for card in group))
        for group in groups.values()
    ]
