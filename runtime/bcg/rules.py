"""Break rules: which modules of a target run eagerly, by default and by the user's wish.

By default attention is a break (`bcg.attention`) and so are recurrent mixers. ``--break WORDS`` adds modules
by path or class name, functions and operations. Modules are wrapped on the instance; no class is changed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from bcg.breaks import BreakLabel, call_break
from bcg.context import check_fits, current_forward_context
from bcg.errors import ModelError, UsageError
from bcg.functions import FunctionReference, find_function, functions_broken
from bcg.operations import OperationPlace, find_operation, operations_broken
from bcg.report import BreakSource

_STATE_UPDATES = frozenset({"update_conv_state", "update_recurrent_state"})


@dataclass(frozen=True)
class BreakRules:
    """What was made a break in a target.

    Attributes:
        attention: Paths of the modules whose attention is a break.
        mixers: Paths of the recurrent mixers that are breaks.
        globs: For each ``--break`` the paths of the modules that it matched, or the function or operation itself.
    """

    attention: tuple[str, ...] = ()
    mixers: tuple[str, ...] = ()
    globs: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedBreaks:
    """The functions and operations that ``--break`` names."""

    functions: tuple[FunctionReference, ...]
    operations: tuple[OperationPlace, ...]

    @classmethod
    def find(cls, words: Iterable[str]) -> NamedBreaks:
        """Find what is no glob of modules: ``package.module:function`` and ``OPERATION@FILE:LINE``.

        Raises:
            UsageError: There is no such function, or an operation is written in another way.
        """
        named = [word for word in words if is_named(word)]
        return cls(
            tuple(find_function(word) for word in named if "@" not in word),
            tuple(find_operation(word) for word in named if "@" in word),
        )

    @property
    def paths(self) -> dict[str, tuple[str, ...]]:
        """As in `BreakRules.globs`."""
        paths = [function.path for function in self.functions] + [place.path for place in self.operations]
        return {path: (path,) for path in paths}

    @contextlib.contextmanager
    def in_effect(self) -> Iterator[None]:
        """Surround one forward."""
        with functions_broken(self.functions, "rule"), operations_broken(self.operations, "rule"):
            yield


def is_named(words: str) -> bool:
    """Tell whether ``--break`` names a function or an operation, and no module."""
    return ":" in words


def refuse_unmet(rules: BreakRules, labels: Iterable[BreakLabel], name: str) -> None:
    """Refuse a function or operation that was to be a break and never was: what needed it was captured (hazard S15).

    Args:
        rules: Of a target.
        labels: Of the breaks that its forward has.
        name: Of the target.

    Raises:
        UsageError: Naming it.
    """
    met = {label.rule for label in labels}
    for words in rules.globs:
        if is_named(words) and words not in met:
            what = "operation at that line" if "@" in words else "function"
            raise UsageError(
                f"--break {words!r} is no break of {name}: its forward never calls that {what}, or only inside "
                "another break",
                hint="name it as the modules that call it know it, or leave it out",
            )


def break_modules(root: nn.Module, globs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Make the modules that match a glob, by path or class name, breaks.

    Raises:
        UsageError: If a glob matches nothing; the hint lists near names.
    """
    named = [(path, module) for path, module in root.named_modules() if path]
    matched = {
        glob: tuple(
            path for path, module in named if fnmatchcase(path, glob) or fnmatchcase(type(module).__name__, glob)
        )
        for glob in globs
    }
    for glob, paths in matched.items():
        if not paths:
            raise UsageError(
                f"--break {glob!r} matches no module, neither by path nor by class name",
                hint=_near_names(glob, named),
            )
    for path in dict.fromkeys(path for paths in matched.values() for path in paths):
        break_module(root, path, "rule")
    return matched


def break_module(root: nn.Module, path: str, source: BreakSource) -> None:
    """Make the module at `path` a break; a module that is one already stays as it is."""
    module = root.get_submodule(path)
    if not isinstance(vars(module).get(_called(module)), _BrokenForward):
        _BrokenForward.put(module, BreakLabel(type(module).__name__, path, source))


def unbreak_modules(root: nn.Module, paths: Iterable[str]) -> None:
    """Make the modules at these paths no breaks any more: what they called before is called again."""
    for module in map(root.get_submodule, paths):
        attributes, called = vars(module), _called(module)
        if isinstance(attributes.get(called), _BrokenForward):
            before = attributes.pop(called).before
            if before is not None:
                attributes[called] = before


@contextlib.contextmanager
def forwards_kept(root: nn.Module) -> Iterator[None]:
    """Bring back, after the block, the modules' own forwards, which breaks take the place of."""
    before = [(vars(module), name, vars(module).get(name)) for module in root.modules() for name in _CALLED]
    try:
        yield
    finally:
        for attributes, name, forward in before:
            if forward is not None:
                attributes[name] = forward
            else:
                attributes.pop(name, None)


def _near_names(glob: str, named: list[tuple[str, nn.Module]]) -> str:
    classes = list(dict.fromkeys(type(module).__name__ for _, module in named))
    leaves = dict.fromkeys("*." + path.rsplit(".", 1)[-1] for path, _ in named)
    names = [*classes, *leaves, *(path for path, _ in named)]
    by_lower = {name.lower(): name for name in reversed(names)}
    bare = glob.lower().strip("*.")
    near = [by_lower[name] for name in get_close_matches(bare, by_lower, n=4, cutoff=0.5)]
    near += [name for name in names if bare and bare in name.lower() and name not in near][:3]
    if near:
        return f"near names: {', '.join(near)}"
    return f"class names: {', '.join(classes[:12])}"


def find_mixers(root: nn.Module) -> dict[str, nn.Module]:
    """Find recurrent mixers (Mamba and its kin), by path.

    A mixer is an innermost module that keeps convolution or recurrent state in a cache: its forward takes
    ``cache_params``, or its class updates such state of transformers' caches.
    """
    inner = {path: module for path, module in root.named_modules() if path}
    recurrent = {kind for kind in set(map(type, inner.values())) if _is_recurrent(kind)}
    candidates = {path: module for path, module in inner.items() if type(module) in recurrent}
    return {
        path: module
        for path, module in candidates.items()
        if not any(other.startswith(f"{path}.") for other in candidates)
    }


def break_mixers(root: nn.Module) -> tuple[str, ...]:
    """Make recurrent mixers breaks, each request on its own; return their paths."""
    mixers = find_mixers(root)
    for path, module in mixers.items():
        _BrokenForward.put(module, BreakLabel(type(module).__name__, path, "mixer"), per_request=True)
    return tuple(mixers)


def _is_recurrent(kind: type[nn.Module]) -> bool:
    if issubclass(kind, torch.jit.ScriptModule):
        return False  # it has no forward to look at
    if "cache_params" in inspect.signature(kind.forward).parameters:
        return True
    functions = (value for base in kind.__mro__ for value in vars(base).values() if inspect.isfunction(value))
    return any(_STATE_UPDATES & set(inspect.unwrap(one).__code__.co_names) for one in functions)


class _BrokenForward:
    """Stands in for a module's forward, as a break; a deep copy of the module gets one that runs the copy.

    Args:
        module: Whose forward. It is not kept alive: with a strong reference back, dropping a model would free its
            weights only when the cycle collector comes by.
        before: What stood in for the forward before; `None` for the class's own.
        label: Of the break.
        per_request: Whether it runs on each request's rows.
    """

    def __init__(
        self, module: nn.Module, before: Callable[..., Any] | None, label: BreakLabel, *, per_request: bool
    ) -> None:
        self.before = before
        self.__name__ = self.__qualname__ = label.name
        self.__signature__ = inspect.signature(module.forward)
        self._module = weakref.ref(module)
        self._label = label
        self._per_request = per_request
        run = own = before or _class_forward(module)
        if per_request:
            run = functools.update_wrapper(functools.partial(_run_per_request, own, label.module or ""), own)

        def broken(*args: Any, **kwargs: Any) -> Any:
            return call_break(run, args, kwargs, label)

        self._call: Callable[..., Any] = torch.compiler.disable(broken)

    @classmethod
    def put(cls, module: nn.Module, label: BreakLabel, *, per_request: bool = False) -> None:
        """Put one in the place of a module's forward."""
        called = _called(module)
        setattr(module, called, cls(module, vars(module).get(called), label, per_request=per_request))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _BrokenForward:
        copied = memo.get(id(self._module()))
        if copied is None:
            return self
        return type(self)(copied, copy.deepcopy(self.before, memo), self._label, per_request=self._per_request)


_CALLED = ("forward", "_compiled_call_impl")


def _called(module: nn.Module) -> str:
    """Return through which attribute a call of the module goes: its forward, or what its own `compile` made of it."""
    return "forward" if module._compiled_call_impl is None else "_compiled_call_impl"


def _class_forward(module: nn.Module) -> Callable[..., Any]:
    """Return the forward of the module's class, bound to the module without a reference to it."""
    method = MethodType(type(module).forward, module)
    reference = weakref.WeakMethod(method)

    @functools.wraps(method.__func__)
    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = reference()
        assert bound is not None
        return bound(*args, **kwargs)

    return forward


def _run_per_request(forward: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
    """Run a module on each request's rows of its ``[1, rows, …]`` arguments; padding rows become 0."""
    context = current_forward_context()
    rows = next((value.shape[1] for value in (*args, *kwargs.values()) if _is_sequence(value)), None)
    if context is None or rows is None or context.is_whole_request(rows):
        return forward(*args, **kwargs)
    check_fits(context, rows)
    offsets = context.offsets()
    results = [
        forward(
            *(_cut(value, rows, start, end) for value in args),
            **{name: _cut(value, rows, start, end) for name, value in kwargs.items()},
        )
        for start, end in itertools.pairwise(offsets)
    ]
    return _join(results, rows - offsets[-1], path)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 2 and value.shape[0] == 1


def _cut(value: Any, rows: int, start: int, end: int) -> Any:
    if _is_sequence(value) and value.shape[1] == rows:
        return value[:, start:end]
    if isinstance(value, tuple):
        return tuple(_cut(item, rows, start, end) for item in value)
    return value


def _join(results: list[Any], num_padding: int, path: str) -> Any:
    first = results[0]
    if isinstance(first, Tensor):
        padding = [first.new_zeros(1, num_padding, *first.shape[2:])] if num_padding else []
        return torch.cat([*results, *padding], dim=1)
    if isinstance(first, tuple):
        return tuple(_join(list(items), num_padding, path) for items in zip(*results, strict=True))
    if first is None:
        return None
    raise ModelError(f"mixer {path!r} returns {type(first).__name__}; requests can't be joined along it")
