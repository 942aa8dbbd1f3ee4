"""Shorter warm-ups: each kind of layer once.

A warm-up lets libraries, autotuners and compilers meet the shapes of a bucket before they are captured (hazards
L10, L11). Equal layers launch equal kernels, so after the first bucket, which is warmed up whole, it is enough to
run the layers at the start of each layer list up to the first of the last kind: one of the 36 layers of Qwen3-8B,
eight of the 52 of NemotronH-8B. Positions in the list stay what they are, as code that looks up a layer's type by
its position expects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping

from torch import Tensor, nn


def distinct_prefixes(root: nn.Module) -> dict[nn.ModuleList, int]:
    """Return, for each list of layers in `root`, the length of its shortest prefix that has every kind of layer.

    Two layers are of one kind when their submodules have the same classes, parameter shapes and settings. Lists
    inside a layer, such as experts, are left alone.
    """
    prefixes: dict[nn.ModuleList, int] = {}
    for layers in outermost_lists(root):
        kinds = _kinds(layers)
        prefix = max((kinds.index(kind) for kind in set(kinds)), default=0) + 1
        if prefix < len(layers):
            prefixes[layers] = prefix
    return prefixes


def outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Yield the lists of layers of a module; lists inside a layer are left alone."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from outermost_lists(child)


def outermost_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers in those lists."""
    return [layer for layers in outermost_lists(module) for layer in layers]


@contextlib.contextmanager
def cut_to(root: nn.Module, lengths: Mapping[nn.ModuleList, int]) -> Iterator[nn.Module]:
    """Give `root` with as many layers of each list, for forwards inside the block.

    It is a copy of the modules above the layers, so that other threads' forwards see all of them; what forwards set on
    these modules is theirs after the block.
    """
    copies: dict[nn.Module, nn.Module] = {}
    try:
        yield _cut(root, lengths, copies)
    finally:
        for module, copied in copies.items():
            _take_over(module, copied)


def _cut(module: nn.Module, lengths: Mapping[nn.ModuleList, int], copies: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in copies:
        return copies[module]
    children = {
        name: child if child is None else _cut(child, lengths, copies) for name, child in module._modules.items()
    }
    if isinstance(module, nn.ModuleList) and module in lengths:
        children = dict(list(module._modules.items())[: lengths[module]])
    elif all(child is module._modules[name] for name, child in children.items()):
        return module
    copied = copies[module] = type(module).__new__(type(module))
    vars(copied).update(vars(module), _modules=children)
    return copied


def _take_over(module: nn.Module, copied: nn.Module) -> None:
    """Give a module what a forward of its copy has set, or taken away."""
    own, others = vars(module), vars(copied)
    for name in own.keys() - others.keys():
        del own[name]
    own.update({name: value for name, value in others.items() if name != "_modules"})
    for name in copied._modules.keys() - module._modules.keys():
        module._modules[name] = copied._modules[name]


def _kinds(layers: nn.ModuleList) -> list[Hashable]:
    """Describe each layer; a number that is a layer's own position in all layers tells nothing about its kind."""
    settings = [dict(_settings(layer)) for layer in layers]
    names = {name for found in settings for name in found}
    positions = {
        name
        for name in names
        if all(found[name] == index for index, found in enumerate(settings) if name in found)
        and not any(isinstance(found.get(name), bool) for found in settings)
    }
    return [
        (_structure(layer), tuple(item for item in found.items() if item[0] not in positions))
        for layer, found in zip(layers, settings, strict=True)
    ]


def _structure(layer: nn.Module) -> Hashable:
    return tuple(
        (path, type(part), *((name, held.shape, held.dtype) for name, held in _tensors(part)))
        for path, part in layer.named_modules()
    )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield name, tensor


def _settings(layer: nn.Module) -> Iterator[tuple[tuple[str, str], str | bool | int | float]]:
    for path, part in layer.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, (str, bool, int, float)):
                yield (path, name), value
