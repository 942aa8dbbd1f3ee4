"""The process of one mode as its parent starts it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bcg.child import Child
from bcg.profile.messages import Reply


@contextmanager
def start_session() -> Iterator[Child]:
    """Start a worker and end it with the block.

    It gets a compiler cache of its own, empty at first: start-up is measured cold, and modes don't help each other.
    """
    with tempfile.TemporaryDirectory(prefix="bcg-profile-", ignore_cleanup_errors=True) as folder:
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),
            "TRITON_CACHE_DIR": str(Path(folder) / "triton"),
        }
        with Child("bcg.profile.worker", "the process of the mode", Reply, caches) as child:
            yield child
