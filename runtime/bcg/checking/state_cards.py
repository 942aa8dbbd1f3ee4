"""Cards of state: what replays leave, keep or carry on otherwise than eager."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bcg.checking.cards import attribute_card
from bcg.checking.places import Attribute, split_path
from bcg.checking.upkeep import Upkeep
from bcg.checking.verdicts import Verification
from bcg.device.base import Pool
from bcg.report import Card
from bcg.state import Change, Snapshot

_IS_REFILLED = "is filled anew by an eager forward of another size than the last, and not by a replay"
_IS_WRITTEN = "is not what eager leaves there: a replay writes where, or what, the capture wrote"


def state_cards(
    root: nn.Module, verification: Verification, captured: Snapshot, pool: Pool, upkeep: Upkeep
) -> list[Card]:
    """Name the state that replay leaves otherwise than eager, a card an attribute.

    Args:
        root: The module tree.
        verification: What was found.
        captured: The state right after the capture.
        pool: The graphs' pool.
        upkeep: What eager forwards do to state.
    """
    groups: dict[Attribute, dict[str, Change]] = {}
    for bucket in verification.buckets:
        for change in bucket.state_changes:
            groups.setdefault(split_path(root, change.path), {}).setdefault(change.path, change)
    refilled = {
        place: changes
        for place, changes in groups.items()
        if any(change.is_tensor and change.path in upkeep.refilled for change in changes.values())
    }
    caches = {module for module, _ in refilled}
    counting = {
        module for (module, _), group in groups.items() if not all(change.is_tensor for change in group.values())
    }
    cards = []
    for place, group in groups.items():
        if any(path in upkeep.carried for path in group):
            cards.append(_carried_card(root, place))
        elif place in refilled:
            cards.append(attribute_card(root, "S8", f"{place.path} {_IS_REFILLED}", place))
        elif upkeep.in_place.issuperset(group):
            if place.module not in counting:  # else a number of the same module says where it is written
                cards.append(attribute_card(root, "S12", f"{place.path} {_IS_WRITTEN}", place))
        elif place.module not in caches or not upkeep.refilled.issuperset(group):  # else it is the key of a cache
            cards.append(_other_card(root, place, list(group.values()), captured, pool))
    return cards


def _other_card(root: nn.Module, place: Attribute, found: list[Change], captured: Snapshot, pool: Pool) -> Card:
    held = [tensor for name, tensor in captured.tensors.items() if split_path(root, name) == place]
    change = next((change for change in found if not change.is_tensor), found[0])
    if change.is_tensor and any(_on_device(tensor, root) and pool.owns(tensor) for tensor in held):
        return _kept_card(root, place)
    if change.is_tensor:
        title = f"{place.path} is not what eager leaves there: the line that sets it ran at capture only"
    else:
        title = f"{change.path} is {_show(change.after)} after a replay, {_show(change.before)} in eager"
    return attribute_card(root, "S12", title, place)


def pool_cards(root: nn.Module, verification: Verification, upkeep: Upkeep) -> list[Card]:
    """Name the attributes in which tensors of the pool are kept (S11), or that forwards carry on (S12)."""
    cards = {}
    for path in (path for bucket in verification.buckets for path in bucket.kept_outputs):
        place = split_path(root, path)
        cards[place] = (_carried_card if path in upkeep.carried else _kept_card)(root, place)
    return list(cards.values())


def _carried_card(root: nn.Module, place: Attribute) -> Card:
    title = f"eager reads {place.path} and puts another tensor there, a replay always reads the one of its capture"
    return attribute_card(root, "S12", title, place)


def _kept_card(root: nn.Module, place: Attribute) -> Card:
    title = f"{place.path} keeps a tensor of the graph's pool or inputs, which the next replay overwrites"
    return attribute_card(root, "S11", title, place)


def advanced_card(root: nn.Module, path: str) -> Card:
    """Name a tensor that captures changed in place, to the effect that forwards go on otherwise (S13)."""
    title = f"{path} has moved on before the first replay: warm-up and capture changed it in place"
    return attribute_card(root, "S13", title, split_path(root, path))


def _on_device(tensor: Tensor, root: nn.Module) -> bool:
    """Tell whether a tensor is where the model is."""
    place = next((parameter.device for parameter in root.parameters()), tensor.device)
    return tensor.device.type == torch.device(place).type


def _show(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"
