"""What a MODEL argument names, by its looks; no torch, so that a wrong one is told at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, TypeAlias

from bcg.errors import UsageError
from bcg.presets import find_preset

ModelKind: TypeAlias = Literal["directory", "factory", "hub", "preset"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def kind_of_model(model: str) -> ModelKind:
    """Tell what a MODEL argument names.

    Raises:
        UsageError: Nothing: there is no such preset, file or directory.
    """
    if not model.strip():
        raise UsageError("MODEL is empty", hint="name a preset, a directory, a hub id or file.py:factory")
    path = Path(model).expanduser()
    if path.is_dir():
        return "directory"
    if path.is_file():
        raise UsageError(
            f"{model} is a file, expected a model",
            hint=f"name the factory in it: {model}:FACTORY" if path.suffix == ".py" else "give its directory",
        )
    source, colon, factory = model.rpartition(":")
    if colon and factory.isidentifier():
        if source.endswith(".py") and not Path(source).expanduser().is_file():
            raise UsageError(f"script {source} doesn't exist", hint="give file.py:factory")
        return "factory"
    if path.suffix == ".py":
        raise UsageError(f"script {model} doesn't exist", hint="give file.py:factory")
    if _HUB_ID.fullmatch(model) and not model.startswith("."):
        return "hub"
    if "/" in model or model.startswith(("~", ".")):
        raise UsageError(f"no such directory: {model}", hint="a model directory holds config.json")
    find_preset(model)
    return "preset"
