"""Modes: the ways to execute a target that a profile compares."""

from __future__ import annotations

from importlib import import_module

from bcg.modes.base import Mode
from bcg.report import ModeName
from bcg.target import Target

_CLASSES: dict[ModeName, str] = {
    "eager": "Eager",
    "full": "Full",
    "breakable": "Breakable",
    "compiled": "Compiled",
    "piecewise": "Piecewise",
    "fused": "Fused",
}
_COMPILING: tuple[ModeName, ...] = ("compiled", "piecewise", "fused")


def why_unavailable(name: ModeName, device_type: str, num_ranks: int | None = None) -> str | None:
    """Return why a mode can't exist on a kind of device, over that many ranks, or None."""
    if device_type == "cpu" and name in _COMPILING:
        return "not available on the host device: compiled code can be recorded in a graph only on a GPU"
    if device_type == "cpu" and name == "full" and num_ranks is not None:
        return "not available on the host device over ranks: collectives are breaks there, and full has none"
    return None


def has_own_kernels(name: ModeName) -> bool:
    """Tell whether a mode runs other kernels than eager, which round elsewhere."""
    return name in _COMPILING


def compiles_every_bucket(name: ModeName) -> bool:
    """Tell whether a mode compiles the whole forward anew for each token count, which takes minutes."""
    return name in ("compiled", "piecewise")


def prepare_process(name: ModeName) -> None:
    """Start what a mode needs that can get ready while its model is loaded; to be called before the model is."""
    if name in _COMPILING:
        import_module("bcg.modes.compilers").start_compiler()


def make_mode(name: ModeName, target: Target) -> Mode:
    """Make a mode of a target; it takes the target over, so there is one to a process."""
    made: Mode = getattr(import_module(f"bcg.modes.{name}"), _CLASSES[name])(target)
    return made
