"""Remedies in words that another process, with the same target, understands."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

from torch import nn

from bcg.diagnose.messages import FunctionWords, PlaceWords, RemedyWords
from bcg.diagnose.remedies import Remedy
from bcg.errors import BcgError
from bcg.functions import FunctionPlace, FunctionReference, code_of


def in_words(remedy: Remedy, root: nn.Module) -> RemedyWords | None:
    """Say a remedy in words; None where its function has a name that only this process can find.

    Args:
        remedy: Of a target.
        root: The target's module.
    """
    function = None
    if remedy.function is not None:
        places = [_place_in_words(place, root) for place in remedy.function.places]
        known = [place for place in places if place is not None]
        if len(known) < len(places):
            return None
        function = FunctionWords(path=remedy.function.path, places=known)
    return RemedyWords(size=remedy.size, name=remedy.name, source=remedy.source, function=function)


def from_words(words: RemedyWords, root: nn.Module) -> Remedy:
    """Return the remedy that words mean for the target whose module is `root`.

    Raises:
        BcgError: There is no such function here.
    """
    if words.function is None:
        return Remedy(words.size, words.name, words.source)
    try:
        places = tuple(FunctionPlace(_owner(place, root), place.name) for place in words.function.places)
        code = code_of(places[0].get())
    except (AttributeError, LookupError) as error:
        raise BcgError(f"there is no function {words.function.path} here: {error}") from error
    if code is None:
        raise BcgError(f"{words.function.path} is no Python function here")
    return Remedy(words.size, words.name, words.source, FunctionReference(words.function.path, code, places))


def _place_in_words(place: FunctionPlace, root: nn.Module) -> PlaceWords | None:
    if isinstance(place.owner, nn.Module):
        paths = (path for path, module in root.named_modules() if module is place.owner)
        path = next(paths, None)
        return None if path is None else PlaceWords(file="", path=path, name=place.name)
    scope, path = place.owner, ""
    if isinstance(place.owner, type):
        scope, path = vars(sys.modules[place.owner.__module__]), place.owner.__qualname__
    file = scope.get("__file__")
    if file is None or "<locals>" in path:
        return None
    return PlaceWords(file=file, path=path, name=place.name)


def _owner(place: PlaceWords, root: nn.Module) -> Any:
    if not place.file:
        return root.get_submodule(place.path)
    found = [
        module
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType) and vars(module).get("__file__") == place.file
    ]
    if not found:
        raise LookupError(f"no module of {place.file} is loaded")
    return functools.reduce(getattr, place.path.split("."), found[0]) if place.path else vars(found[0])
