"""Where segments are recorded: on a GPU (`bcg.device.cuda`) or on the host (`bcg.device.host`).

The package alone loads no torch: the driver's log (`bcg.device.driver_log`) must be asked for before torch is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcg.errors import UsageError

if TYPE_CHECKING:
    import torch

    from bcg.device.base import Device


def find_device(device: str | torch.device | None = None) -> Device:
    """Return the device to record on.

    Args:
        device: ``"cpu"`` for the host device, ``"cuda"`` or ``"cuda:1"`` for a GPU, `None` for the current GPU
            where there is one and the host device elsewhere.

    Raises:
        UsageError: No such device, or a GPU was asked for where torch sees none.
    """
    import torch

    from bcg.device.host import HostDevice

    wanted = torch.device(device) if device is not None else None
    if wanted is None:
        wanted = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.type == "cpu":
        return HostDevice()
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                f"device {str(wanted)!r} was asked for, but torch {torch.__version__} sees no GPU",
                hint="use the host device (cpu), or install a torch build that matches the GPU's driver",
            )
        from bcg.device.cuda import CudaDevice

        return CudaDevice(torch.cuda.current_device() if wanted.index is None else wanted.index)
    raise UsageError(f"device {str(wanted)!r} can't record graphs", hint="use 'cpu' or 'cuda'")
