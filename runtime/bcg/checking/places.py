"""Where the parts of a module tree are: among other modules, and in the source."""

from __future__ import annotations

import inspect
import re

from torch import nn

from bcg.whereabouts import is_users, source_line_of

_NO_FORWARD = nn.Module.forward
"""What lists of modules have: nobody calls them."""


def modules_around(root: nn.Module, path: str) -> tuple[str, ...]:
    """Return the paths of a module and of those around it that have a forward, the innermost first, less the root."""
    parts = path.split(".") if path else []
    around = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return tuple(outer for outer in around if type(root.get_submodule(outer)).forward is not _NO_FORWARD)


def split_path(root: nn.Module, path: str) -> tuple[str, str]:
    """Split an attribute path into the module's path and the attribute's name."""
    inner = path.removeprefix("len(")
    best, rest = "", inner
    for name, _ in root.named_modules():
        if name and inner.startswith(f"{name}.") and len(name) > len(best):
            best, rest = name, inner[len(name) + 1 :]
    return best, re.split(r"[.\[)]", rest)[0]


def attribute_line(root: nn.Module, module: str, attribute: str) -> str:
    """Return ``file:line`` where the module's class changes ``self.attribute`` outside its constructor."""
    owner = root.get_submodule(module)
    if not hasattr(owner, attribute):
        return ""
    kind = type(owner)
    try:
        lines, first = inspect.getsourcelines(kind)
        file = inspect.getsourcefile(kind) or ""
    except (OSError, TypeError):
        return ""
    changing = re.compile(
        rf"\.{re.escape(attribute)}\b(\[[^\]]*\])?\s*([-+*/|&]|//|\*\*)?=(?!=)|\.{re.escape(attribute)}\.\w+\("
    )
    in_constructor = False
    for offset, line in enumerate(lines):
        if re.match(r"\s*def ", line):
            in_constructor = "__init__" in line
        if not in_constructor and changing.search(line):
            return f"{file}:{first + offset}"
    return f"{file}:{first}"


def module_line(root: nn.Module, module: str) -> str:
    """Return ``file:line`` of a module's forward; of a layer of torch's, the line that calls it or what it is in."""
    own = source_line_of(type(root.get_submodule(module)).forward)
    names = module.split(".") if module else []
    for depth in range(len(names), -1, -1):
        outer = type(root.get_submodule(".".join(names[:depth])))
        line = source_line_of(outer.forward)
        if is_users(line.rpartition(":")[0]):
            return line if depth == len(names) else _calling_line(outer, names[depth]) or line
    return own


def _calling_line(kind: type[nn.Module], name: str) -> str:
    """Return the first line of a class's forward that speaks of its submodule `name`."""
    forward = inspect.unwrap(kind.forward)
    try:
        lines, first = inspect.getsourcelines(forward)
        file = inspect.getsourcefile(forward) or ""
    except (OSError, TypeError):
        return ""
    offsets = (offset for offset, line in enumerate(lines) if re.search(rf"\.{re.escape(name)}\b", line))
    return next((f"{file}:{first + offset}" for offset in offsets), "")
