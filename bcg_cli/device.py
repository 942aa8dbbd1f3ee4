"""Which device the command line's ``--device`` means on this machine, and why not the GPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bcg.errors import BcgError
from bcg_cli import console
from bcg_cli.options import Device

if TYPE_CHECKING:
    import torch

DRIVER_FILE = Path("/proc/driver/nvidia/version")

_HOST_HINT = "--device cpu captures on the host, without a GPU"


def resolve_device(wanted: Device) -> torch.device:
    """Chooses the device, and lets a GPU's driver keep a log for diagnoses, before torch can load the driver.

    Args:
        wanted: ``auto`` takes the GPU where there is a usable one, else the host; where a driver is
            there but can't be used, it says why on stderr.

    Raises:
        BcgError: ``cuda`` was asked for and can't be used; the message says why.
    """
    from bcg.device.driver_log import keep_log

    if wanted is not Device.cpu:
        keep_log()
    import torch

    if wanted is Device.cpu:
        return torch.device("cpu")
    obstacle = why_no_gpu()
    if obstacle is None:
        return torch.device("cuda")
    if wanted is Device.cuda:
        raise BcgError(f"--device cuda: {obstacle}", hint=_hint(obstacle))
    if DRIVER_FILE.exists():
        console.note(f"the GPU is not used: {obstacle}; {_hint(obstacle)}")
    return torch.device("cpu")


def why_no_gpu() -> str | None:
    """Returns why torch can't use a GPU, in torch's own words, or None where it can."""
    import torch

    with warnings.catch_warnings():
        # torch warns first and raises the same text in `init`, where it can be read.
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return None
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return _first_sentence(str(error))
    return "torch finds no GPU"


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def _hint(obstacle: str) -> str:
    if "too old" in obstacle:
        return f"update the driver, or install a torch built for its CUDA version; {_HOST_HINT}"
    if "not compiled with CUDA" in obstacle:
        return f"install a torch that is built with CUDA; {_HOST_HINT}"
    return _HOST_HINT
