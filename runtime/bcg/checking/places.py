"""Where the parts of a module tree are: among other modules, and in the source."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules import module as nn_module

from bcg.whereabouts import is_users, source_line_of

_NO_FORWARD = nn.Module.forward
"""What lists of modules have: nobody calls them."""


def modules_around(root: nn.Module, path: str) -> tuple[str, ...]:
    """Return the paths of a module and of those around it that have a forward, the innermost first, less the root."""
    parts = path.split(".") if path else []
    around = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return tuple(outer for outer in around if type(root.get_submodule(outer)).forward is not _NO_FORWARD)


class Attribute(NamedTuple):
    """An attribute of a module, which is named by its path."""

    module: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name


def split_path(root: nn.Module, path: str) -> Attribute:
    """Return the attribute of a module that a path names, or names a part of."""
    inner = path.removeprefix("len(")
    best, rest = "", inner
    for name, _ in root.named_modules():
        if name and inner.startswith(f"{name}.") and len(name) > len(best):
            best, rest = name, inner[len(name) + 1 :]
    return Attribute(best, re.split(r"[.\[)]", rest)[0])


def attribute_line(root: nn.Module, module: str, attribute: str) -> str:
    """Return ``file:line`` where the user's code changes an attribute of a module outside its constructor.

    It is looked for in the module's class, in those of the modules around it, and in hooks. Where none does so
    plainly, it is the module's own place.
    """
    owner = root.get_submodule(module)
    if not hasattr(owner, attribute):
        return ""
    names = module.split(".") if module else []
    inside = rf"\.{re.escape(attribute)}"
    looked_into: list[tuple[type | Callable[..., Any], str]] = [(type(owner), inside)]
    for depth in range(len(names) - 1, -1, -1):
        outer = type(root.get_submodule(".".join(names[:depth])))
        looked_into.append((outer, rf"\.{re.escape(names[-1])}{inside}"))
    looked_into += [(hook, inside) for _, hook in hooks_of(root)]
    found = (_changing_line(code, path) for code, path in looked_into)
    return next(filter(None, found), "") or _class_line(type(owner)) or module_line(root, module)


def hooks_of(root: nn.Module) -> Iterator[tuple[str | None, Callable[..., Any]]]:
    """Yield the forward hooks of a module tree with their module's path; first, with None, those of all modules."""
    for hook in (*nn_module._global_forward_pre_hooks.values(), *nn_module._global_forward_hooks.values()):
        yield None, hook
    for path, module in root.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            yield path, hook


def _changing_line(code: type | Callable[..., Any], path: str) -> str:
    """Return the first line of the user's code, outside a constructor, that sets `path` or calls its methods."""
    lines, place = _source_of(code)
    changing = re.compile(rf"{path}\b(\[[^\]]*\])?(\s*([-+*/|&]|//|\*\*)?=(?!=)|(\.data)?\.\w+\()")
    in_constructor = False
    for offset, line in enumerate(lines):
        if re.match(r"\s*def ", line):
            in_constructor = "__init__" in line
        if not in_constructor and changing.search(line):
            return _if_users(place(offset))
    return ""


def _class_line(kind: type[nn.Module]) -> str:
    lines, place = _source_of(kind)
    return _if_users(place(0)) if lines else ""


def _if_users(line: str) -> str:
    return line if is_users(line.rpartition(":")[0]) else ""


def module_line(root: nn.Module, module: str) -> str:
    """Return ``file:line`` of a module's forward; of a layer of torch's, the line that calls it or what it is in."""
    names = module.split(".") if module else []
    for depth in range(len(names), -1, -1):
        outer = type(root.get_submodule(".".join(names[:depth])))
        if line := _if_users(source_line_of(outer.forward)):
            return line if depth == len(names) else _calling_line(outer, names[depth]) or line
    return ""


def _calling_line(kind: type[nn.Module], name: str) -> str:
    """Return the first line of a class's forward that speaks of its submodule `name`."""
    lines, place = _source_of(inspect.unwrap(kind.forward))
    offsets = (offset for offset, line in enumerate(lines) if re.search(rf"\.{re.escape(name)}\b", line))
    return next(map(place, offsets), "")


def _source_of(code: type | Callable[..., Any]) -> tuple[list[str], Callable[[int], str]]:
    """Return the lines of a class or function, and what gives the place of each by its offset; none without source."""
    try:
        lines, first = inspect.getsourcelines(code)
        file = inspect.getsourcefile(code) or ""
    except (OSError, TypeError):
        return [], lambda _: ""
    return lines, lambda offset: f"{file}:{first + offset}"
