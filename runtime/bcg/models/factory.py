"""Models of one's own: in memory, ``file.py:factory`` and ``package.module:factory``."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bcg.errors import BcgError, ModelError, UsageError, first_line
from bcg.functions import FILE_MODULES
from bcg.input_makers import MakeExtras, MakeInputs
from bcg.models.build import Made, build_target, find_dtype, seeded
from bcg.models.sharding import Sharding
from bcg.target import Target
from bcg.words import TargetWords

_numbers = itertools.count()


def load_factory(words: TargetWords, sharding: Sharding | None = None) -> Target:
    """Call a factory and make a target of what it returns.

    Args:
        words: Name a function without required arguments. It returns a module, ``(module, make_inputs)``, or
            ``(module, make_inputs, make_extras)``. The module is moved to the device and converted to the dtype, if one
            is given; the seed is that of the global random state while the factory runs.
        sharding: The ranks that all call the factory; it shards the module itself.

    Raises:
        UsageError: If there is no such file, module or factory.
        ModelError: If importing or calling it raises (its error is the cause), or it returns something else,
            or a module without values.
    """
    name, made = words.model, call_factory(words)
    if num_empty := num_on_meta(made.module):
        raise ModelError(
            f"factory {name} returned {num_empty} parameters and buffers on the meta device: they have no values",
            hint="make them on a real device (`to_empty`, and initialise them); a dry run takes them as they are",
        )
    try:
        module = made.module.to(device=words.device, dtype=find_dtype(words.dtype))
    except torch.OutOfMemoryError as error:
        raise ModelError(f"the weights of {name} do not fit on {words.device}: {first_line(error)}") from error
    return build_target(replace(made, module=module), words, sharding)


def make_target(
    module: nn.Module,
    make_inputs: MakeInputs | None = None,
    make_extras: MakeExtras | None = None,
    *,
    name: str | None = None,
    device: torch.device | str | None = None,
    attention_break: bool = True,
    break_globs: Sequence[str] = (),
    sharding: Sharding | None = None,
) -> Target:
    """Make a target of a module in memory; it is put in eval mode, and none of its parameters requires gradients.

    Args:
        module: What is captured.
        make_inputs: Makes its inputs, ``make_inputs(num_tokens, device, generator)``; by default token ids.
        make_extras: Makes what its breaks find in the forward context,
            ``make_extras(request_lengths, device, generator)``; by default nothing.
        name: What it is called; by default its class.
        device: Where it is, and its inputs are made; by default where its parameters are.
        attention_break: Whether attention and recurrent mixers are breaks.
        break_globs: Further breaks, as for `bcg.load_target`.
        sharding: The ranks that have made it together.

    Raises:
        UsageError: A glob names nothing, or `make_inputs` can't be called like that.
        ModelError: The module doesn't take its inputs.
    """
    held = (tensor.device for tensor in (*module.parameters(), *module.buffers()))
    words = TargetWords(
        name or type(module).__name__,
        str(next(held, torch.device("cpu")) if device is None else torch.device(device)),
        attention_break=attention_break,
        break_globs=tuple(break_globs),
    )
    return build_target(_of_user(module, make_inputs, make_extras), words, sharding)


def _of_user(module: nn.Module, make_inputs: MakeInputs | None = None, make_extras: MakeExtras | None = None) -> Made:
    return Made(module, "factory", "user", make_inputs=make_inputs, make_extras=make_extras)


def num_on_meta(module: nn.Module) -> int:
    """Count the parameters and buffers on the ``meta`` device: they have a shape and no values."""
    return sum(tensor.device.type == "meta" for tensor in (*module.parameters(), *module.buffers()))


def call_factory(words: TargetWords) -> Made:
    """Import and call a factory; return what it made.

    Raises:
        UsageError: If there is no such file, module or factory.
        ModelError: If importing or calling it raises, or it returns something else, or a lazy module.
    """
    name = words.model
    source, _, factory = name.rpartition(":")
    made = _unpack(name, _call(words, _find(name, _import(source, name), factory)))
    if num_lazy := sum(map(is_lazy, (*made.module.parameters(), *made.module.buffers()))):
        raise ModelError(
            f"factory {name} returned {num_lazy} parameters and buffers that are not initialized: they have no shape",
            hint="run a lazy module once before the factory returns it",
        )
    return made


def _import(source: str, name: str) -> ModuleType:
    path = Path(source).expanduser()
    is_file = path.suffix == ".py" or "/" in source or "\\" in source
    if is_file and not path.is_file():
        raise UsageError(f"script {source} doesn't exist", hint="MODEL is file.py:factory")
    try:
        return _import_file(path.resolve()) if is_file else importlib.import_module(source)
    except ModuleNotFoundError as error:
        if not is_file and error.name is not None and f"{source}.".startswith(f"{error.name}."):
            raise UsageError(
                f"no module named {error.name!r} for {name}", hint="MODEL is package.module:factory"
            ) from error
        raise _raised(f"importing {source}", error) from error
    except (Exception, SystemExit) as error:
        raise _raised(f"importing {source}", error) from error


def _import_file(path: Path) -> ModuleType:
    module_name = f"{FILE_MODULES}{path.stem}_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _find(name: str, module: ModuleType, factory: str) -> Any:
    found = getattr(module, factory, None)
    if callable(found):
        return found
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    own = [key for key in names if getattr(vars(module)[key], "__module__", None) == module.__name__]
    problem = "has no factory" if found is None else "has no callable"
    hint = f"it defines {', '.join(own[:8])}{' and more' if len(own) > 8 else ''}" if own else "it defines no function"
    if near := get_close_matches(factory, names, n=3, cutoff=0.5):
        hint = f"near names: {', '.join(near)}"
    raise UsageError(f"{name.rpartition(':')[0]} {problem} {factory!r}", hint=hint)


def _call(words: TargetWords, factory: Any) -> Any:
    try:
        with seeded(words.seed, torch.device(words.device)):
            return factory()
    except BcgError:
        raise
    except (Exception, SystemExit) as error:
        raise _raised(f"factory {words.model}", error) from error


def _raised(what: str, error: BaseException) -> ModelError:
    return ModelError(f"{what} raised {type(error).__name__}: {first_line(error)}", hint="--traceback shows where")


def _unpack(name: str, made: Any) -> Made:
    if isinstance(made, nn.Module):
        return _of_user(made)
    is_tuple = isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], nn.Module)
    if is_tuple and all(map(callable, made[1:])):
        return _of_user(*made)
    got = type(made).__name__
    if isinstance(made, tuple):
        got = f"a tuple of ({', '.join(type(item).__name__ for item in made)})"
    raise ModelError(
        f"factory {name} returned {got}, expected a torch.nn.Module, (module, make_inputs), or (module, make_inputs, "
        "make_extras)"
    )
