"""A directory with weights, of which each rank reads its own shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bcg import load_target
from tests.distributed.conftest import Run


def test_a_directory_with_weights_is_read_in_shards(run_ranks: Callable[..., Run], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    load_target("qwen3-tiny", attention_break=False).module.save_pretrained(folder)
    assert (folder / "model.safetensors").is_file()
    done = run_ranks("replay-check", folder, "--tp", 2, "--tokens", 8)
    assert done.code == 0, done.err
    assert "All ranks together, 1 batches against one process: match" in " ".join(done.out.split())
