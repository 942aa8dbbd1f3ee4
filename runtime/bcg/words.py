"""What a target is made from, in words that any process understands; no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TargetWords:
    """What `bcg.load_target` is told, so that another process can make the same target.

    Attributes:
        model: A preset, a Hugging Face directory, a hub id, ``file.py:factory`` or ``package.module:factory``; of a
            module in memory, what it is called.
        device: As in `torch.device`.
        dtype: ``float32``, ``float16`` or ``bfloat16``; None for the model's own.
        seed: Of random weights.
        attention_break: Whether attention and recurrent mixers are breaks.
        break_globs: Further modules to break at, by path or class name, functions as ``package.module:function`` or
            ``file.py:function``, and operations as ``OPERATION@FILE:LINE``.
        expert_parallel: Whether each rank has whole experts, where the model is sharded over ranks.
    """

    model: str
    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0
    attention_break: bool = True
    break_globs: tuple[str, ...] = ()
    expert_parallel: bool = False

    @property
    def device_type(self) -> str:
        return self.device.partition(":")[0]
