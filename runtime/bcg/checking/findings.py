"""From what a check found to cards: each names a row of the catalogue, a place and a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from bcg.cards import hazard_warning, make_card
from bcg.checking.leaks import Leak
from bcg.checking.places import attribute_line, module_line, split_path
from bcg.checking.plan import Trial
from bcg.checking.upkeep import Upkeep
from bcg.checking.verdicts import Verification
from bcg.device.base import Pool
from bcg.inputs import MASK
from bcg.report import Card, ReportWarning
from bcg.segment_tape import FirstRead, Operation
from bcg.state import Change, ModelState, Snapshot
from bcg.structure import storage_key
from bcg.whereabouts import source_line_of

_MAX_ERRORS = 3
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


def moved_card(root: nn.Module, state: ModelState, tensor: Tensor, first_read: FirstRead) -> Card:
    """Name a tensor that a graph reads and that was freed (S5) or given other memory (S4) since the capture."""
    path = next((path for path, held in state.tensors().items() if held is tensor), None)
    name = path or f"a tensor of {tuple(tensor.shape)}"
    if storage_key(tensor) == first_read.storage:
        return operation_card(root, "S5", f"{name}, which the graph reads, was freed", first_read.operation)
    return operation_card(root, "S4", f"{name}, which the graph reads, got other memory", first_read.operation)


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
    groups: dict[tuple[str, str], dict[str, Change]] = {}
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
            cards.append(_carried_card(root, *place))
        elif place in refilled:
            cards.append(_cache_card(root, *place))
        elif upkeep.in_place.issuperset(group):
            if place[0] not in counting:  # else a number of the same module says where it is written
                cards.append(_written_card(root, *place))
        elif place[0] not in caches or not upkeep.refilled.issuperset(group):  # else it is the key of a cache
            cards.append(_state_card(root, *place, list(group.values()), captured, pool))
    return cards


def _state_card(
    root: nn.Module, module: str, attribute: str, found: list[Change], captured: Snapshot, pool: Pool
) -> Card:
    path = f"{module}.{attribute}" if module else attribute
    held = [tensor for name, tensor in captured.tensors.items() if split_path(root, name) == (module, attribute)]
    change = next((change for change in found if not change.is_tensor), found[0])
    if change.is_tensor and any(on_device(tensor, root) and pool.owns(tensor) for tensor in held):
        return _kept_card(root, module, attribute)
    if change.is_tensor:
        title = f"{path} is not what eager leaves there: the line that sets it ran at capture only"
    else:
        title = f"{change.path} is {_show(change.after)} after a replay, {_show(change.before)} in eager"
    return make_card("S12", title, module=module, source_line=attribute_line(root, module, attribute))


def _written_card(root: nn.Module, module: str, attribute: str) -> Card:
    path = f"{module}.{attribute}" if module else attribute
    title = f"{path} is not what eager leaves there: a replay writes where, or what, the capture wrote"
    return make_card("S12", title, module=module, source_line=attribute_line(root, module, attribute))


def _cache_card(root: nn.Module, module: str, attribute: str) -> Card:
    path = f"{module}.{attribute}" if module else attribute
    title = f"{path} is filled anew by an eager forward of another size than the last, and not by a replay"
    return make_card("S8", title, module=module, source_line=attribute_line(root, module, attribute))


def _carried_card(root: nn.Module, module: str, attribute: str) -> Card:
    path = f"{module}.{attribute}" if module else attribute
    title = f"eager reads {path} and puts another tensor there, a replay always reads the one of its capture"
    return make_card("S12", title, module=module, source_line=attribute_line(root, module, attribute))


def pool_cards(root: nn.Module, verification: Verification, upkeep: Upkeep) -> list[Card]:
    """Name the attributes in which tensors of the pool are kept (S11), or that forwards carry on (S12)."""
    cards = {}
    for path in (path for bucket in verification.buckets for path in bucket.kept_outputs):
        place = split_path(root, path)
        cards[place] = (_carried_card if path in upkeep.carried else _kept_card)(root, *place)
    return list(cards.values())


def _kept_card(root: nn.Module, module: str, attribute: str) -> Card:
    path = f"{module}.{attribute}" if module else attribute
    title = f"{path} keeps a tensor of the graph's pool or inputs, which the next replay overwrites"
    return make_card("S11", title, module=module, source_line=attribute_line(root, module, attribute))


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


def advanced_card(root: nn.Module, path: str) -> Card:
    """Name a tensor that captures changed in place, to the effect that forwards go on otherwise (S13)."""
    module, attribute = split_path(root, path)
    title = f"{path} has moved on before the first replay: warm-up and capture changed it in place"
    return make_card("S13", title, module=module, source_line=attribute_line(root, module, attribute))


def advanced_warning(path: str) -> ReportWarning:
    """Warn of a tensor that captures changed in place, which only the tensor itself shows (S13)."""
    return hazard_warning("S13", f"{path} has moved on before the first replay; no result depends on it")


def outside_warning(name: str) -> ReportWarning:
    """Warn of a tensor outside of the module tree that forwards write: nobody knows what it was before (S13)."""
    return hazard_warning(
        "S13", f"{name}, which no module holds, is written by the forward; loading and captures have moved it on"
    )


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
    title = (
        f"{_num(trial.num_padding, 'padding row')} change{'s' if trial.num_padding == 1 else ''} the "
        f"{_num(trial.num_tokens, 'real row')} in the bucket of {trial.tokens}"
    )
    if by_size:
        hazard, remedy = ("S1" if leak.branches else "S2"), _COUNT_REAL_ROWS
        title = (
            f"{_num(trial.num_tokens, 'row')} alone give{'s' if trial.num_tokens == 1 else ''} something else than "
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
    module, attribute = split_path(root, path)
    rows = f"{_num(trial.num_padding, 'padding row')} change{'s' if trial.num_padding == 1 else ''}"
    title = f"{rows} {path} in the bucket of {trial.tokens}, and a later forward gives something else"
    return make_card("S10", title, module=module, source_line=attribute_line(root, module, attribute))


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


def hook_warnings(root: nn.Module, in_breaks: Iterable[str] = ()) -> list[ReportWarning]:
    """Warn of hooks, of modules and of all modules at once, which don't run in a replay (S18).

    Args:
        root: The module tree.
        in_breaks: Paths of modules that run as breaks: their hooks run.
    """
    running = tuple(in_breaks)
    hooked = []
    of_all = [*nn_module._global_forward_pre_hooks.values(), *nn_module._global_forward_hooks.values()]
    if of_all:
        hooked.append(("every module", of_all))
    for path, module in root.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        if hooks and not any(path.startswith(f"{other}.") for other in running):
            hooked.append((path or "the root module", hooks))
    if not hooked:
        return []
    path, hooks = hooked[0]
    count = sum(len(hooks) for _, hooks in hooked)
    return [
        hazard_warning(
            "S18",
            f"{count} forward hook{'s' if count > 1 else ''} will not run in a replay, the first on "
            f"{path} at {source_line_of(hooks[0])}",
        )
    ]


def padding_warnings(verification: Verification) -> list[ReportWarning]:
    """Warn of batch sizes at which eager fails without padding, so that a leak (S10) could not be looked for."""
    if not verification.fails_alone:
        return []
    size, error = next(iter(sorted(verification.fails_alone.items())))
    return [
        ReportWarning(
            code="padding-not-compared",
            message=f"eager fails for {_tokens(size)} without padding: {error}",
            cause="so nothing tells whether padding reaches real rows in a batch of that size",
            remedy="let the forward run at every size that is served, or never serve that one",
        )
    ]


def draw_warnings(verification: Verification) -> list[ReportWarning]:
    """Warn of random generators of the host that eager draws from inside segments, where a replay does not (S16)."""
    if not verification.undrawn:
        return []
    names = " and ".join(verification.undrawn)
    return [
        hazard_warning("S16", f"eager draws from {names}, a replay does not: harmless only where nothing depends on it")
    ]


def constants_card(root: nn.Module) -> Card:
    """Tell that a result has a number, a word or a shape in it that Python makes of the number of rows."""
    return make_card(
        "S2",
        "beside its tensors the result has what Python makes of the number of rows; replay returns its capture's",
        source_line=module_line(root, ""),
        remedy="return tensors only, and make it of them outside of the forward",
    )


def on_device(tensor: Tensor, root: nn.Module) -> bool:
    """Tell whether a tensor is where the model is."""
    place = next((parameter.device for parameter in root.parameters()), tensor.device)
    return tensor.device.type == torch.device(place).type


def reasons(verification: Verification, tokens: int) -> Iterator[str]:
    """Say in a line each why a bucket is no match."""
    bucket = next(bucket for bucket in verification.buckets if bucket.tokens == tokens)
    yield from list(dict.fromkeys(bucket.errors))[:_MAX_ERRORS]
    if bucket.failed and not bucket.errors:
        trial = bucket.failed[0]
        yield f"replay differs from eager, first with requests of {_lengths(trial.request_lengths)} tokens"
    if bucket.moved:
        yield "it was not replayed: a tensor that the graph reads was freed or got other memory"
    if bucket.leaks:
        yield f"padding reaches real rows in a batch of {_tokens(bucket.leaks[0].num_tokens)}"
    if bucket.resized:
        yield f"in a batch of {_tokens(bucket.resized[0].num_tokens)} real rows depend on how many rows there are"
    if bucket.constants:
        rows = _tokens(bucket.constants[0].num_tokens)
        yield f"in a batch of {rows} the result has something else beside its tensors than a replay returns"
    for change in bucket.state_changes[:3]:
        yield f"replay leaves {change.path} otherwise than eager"
    for path in list(bucket.padded_state)[:3]:
        yield f"padding changes {path}, and a later forward gives something else"
    for path in bucket.kept_outputs[:3]:
        yield f"{path} keeps an output that the next replay overwrites"
    if bucket.verdict == "inconclusive" and not bucket.num_launches:
        yield "no segment was launched"
    for trial in bucket.without_numbers[:1]:
        yield f"eager itself gives nothing but NaN at {_tokens(trial.num_tokens)}"
    if bucket.unsteady:
        trial, distance = max(bucket.unsteady.items(), key=lambda item: item[1])
        yield (
            f"eager differs from itself by {_part(verification.spread.largest)}, replay from eager by "
            f"{_part(distance)} at {_tokens(trial.num_tokens)}"
        )
    yield from dict.fromkeys(bucket.doubts)


def _part(error: float) -> str:
    return f"{error:.1e} of the scale" if math.isfinite(error) else "NaN or infinity"


def _lengths(lengths: tuple[int, ...]) -> str:
    return "+".join(str(length) for length in lengths)


def _num(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _tokens(count: int) -> str:
    return _num(count, "token")


def _buckets(tokens: list[int]) -> str:
    return f"the bucket of {tokens[0]}" if len(tokens) == 1 else f"buckets {', '.join(map(str, tokens))}"


def _show(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"
