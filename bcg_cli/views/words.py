"""Numbers, sizes and facts in words, as the terminal and pages tell them."""

from __future__ import annotations

from bcg.report import Environment, ModelInfo
from bcg.sizes import MIB, format_size

OUTSIDE_THE_POOL = "What breaks allocate for themselves is part of eager's peak, and stays outside the pool at replay."

BOUNDARIES_EXPLAINED = (
    "Boundaries, the results of breaks, lie in the pool and share its memory: not all are in use at once."
)

_ORIGINS = {"random": "random", "safetensors": "from safetensors", "user": "as the factory made them, in eval mode"}


def format_number(value: float | None, form: str) -> str:
    """Returns a number in a format of Python's; a dash where it is not known."""
    return "–" if value is None else format(value, form)


def format_mebibytes(num_bytes: int | None) -> str:
    """Returns bytes as MiB in short, or a dash where they are not known."""
    if num_bytes is None:
        return "–"
    value = num_bytes / MIB
    if num_bytes and abs(value) < 0.005:
        return "<0.01" if value > 0 else ">-0.01"
    if abs(value) < 99.995:
        return f"{value:.2f}" if num_bytes else "0"
    return f"{value:,.1f}" if abs(value) < 9999.95 else f"{value:,.0f}"


def format_error(error: float | None) -> str:
    """Returns an error in short; a dash where it could not be compared."""
    if error is None:
        return "–"
    return f"{error:.1e}" if error else "0"


def format_count(count: int) -> str:
    """Returns a large count in short, such as ``8.19 billion``."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.2f} {name}"
    return f"{count:,}"


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun: ``1 segment``, ``2 segments``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def weights_words(model: ModelInfo) -> str:
    """Returns the architecture, and how many weights of which dtype it has."""
    return f"{model.architecture}, {format_count(model.num_parameters)} {model.dtype} weights"


def model_words(model: ModelInfo) -> str:
    """Returns a model in one line, without its name."""
    seed = "" if model.seed is None else f", seed {model.seed}"
    return f"{weights_words(model)} ({format_size(model.weight_bytes)}), {_ORIGINS[model.weights]}{seed}"


def version_words(environment: Environment, *, with_python: bool = False) -> str:
    """Returns the versions of a run in one line; those that a machine doesn't have are left out."""
    versions = [
        f"driver {environment.driver}" if environment.driver else "",
        f"CUDA {environment.cuda}" if environment.cuda else "",
        f"torch {environment.torch}",
        f"transformers {environment.transformers}",
        *(f"{name} {version}" for name, version in environment.kernel_packages.items()),
        f"Python {environment.python}" if with_python else "",
        f"bcg {environment.bcg}",
    ]
    return ", ".join(filter(None, versions))


def device_words(environment: Environment, num_ranks: int) -> str:
    """Returns the device, and over how many of them the model is sharded; no ranks are one process."""
    return f"{num_ranks} ranks, each on {environment.device}" if num_ranks else environment.device
