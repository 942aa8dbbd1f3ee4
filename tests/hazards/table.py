"""Which fault is planted in which file, on which devices it can show, and what must be said about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HOST, GPU = "cpu", "cuda"
EVERYWHERE = (HOST, GPU)

Shows = Literal["capture fails", "mismatch", "inconclusive", "warning", "prevented"]


@dataclass(frozen=True)
class Planted:
    """A planted fault.

    Attributes:
        row: Its row of the catalogue.
        file: With two factories, ``faulty`` and ``healthy``.
        shows: How: the capture fails; the check finds a mismatch, can't tell, or warns; or the fault is one that
            this library rules out, and the check finds a match.
        names: What must be named: a module path or a tensor's.
        also: Rows that the same code falls under as well.
        devices: Where it can show.
    """

    row: str
    file: str
    shows: Shows
    names: str = "planted"
    also: tuple[str, ...] = ()
    devices: tuple[str, ...] = EVERYWHERE


PLANTED = (
    Planted("L1", "l01_host_read.py", "capture fails"),
    Planted("L2", "l02_pinned_memory.py", "capture fails", devices=(GPU,)),
    Planted("L3", "l03_unforked_stream.py", "capture fails", names="stream", devices=(GPU,)),
    Planted("L4", "l04_unjoined_stream.py", "capture fails", names="stream", devices=(GPU,)),
    Planted("L5", "l05_earlier_work.py", "capture fails", devices=(GPU,)),
    Planted("L6", "l06_legacy_stream.py", "capture fails", devices=(GPU,)),
    Planted("L7", "l07_query_by_a_thread.py", "capture fails", devices=(GPU,)),
    Planted("L8", "l08_unknown_generator.py", "capture fails", devices=(GPU,)),
    Planted("L9", "l09_random_state.py", "capture fails", devices=(GPU,)),
    Planted("L10", "l10_late_compilation.py", "warning", names="l10_late_compilation.py", devices=(GPU,)),
    Planted("L11", "l11_cold_library.py", "capture fails", devices=(GPU,)),
    Planted("L13", "l13_out_of_memory.py", "warning", names="24 tokens"),
    Planted("L14", "l14_nested_capture.py", "capture fails"),
    Planted("L15", "l15_earlier_failure.py", "prevented", devices=(GPU,)),
    Planted("S1", "s01_frozen_branch.py", "mismatch"),
    Planted("S2", "s02_baked_number.py", "mismatch"),
    Planted("S3", "s03_asks_whether_capturing.py", "mismatch"),
    Planted("S4", "s04_rebound_input.py", "mismatch", names="planted.scales"),
    Planted("S5", "s05_freed_table.py", "mismatch"),
    Planted("S6", "s06_break_result.py", "prevented"),
    Planted("S7", "s07_break_argument.py", "prevented"),
    Planted("S8", "s08_evicted_cache.py", "mismatch"),
    Planted("S9", "s09_unknown_structure.py", "capture fails", names="Returns.halves"),
    Planted("S10", "s10_leaking_padding.py", "mismatch"),
    Planted("S11", "s11_kept_output.py", "mismatch", names="planted.last"),
    Planted("S12", "s12_host_state.py", "mismatch", names="planted.num_calls"),
    Planted("S13", "s13_advanced_state.py", "mismatch", names="planted.length"),
    Planted("S14", "s14_other_stream.py", "mismatch"),
    Planted("S15", "s15_missing_break.py", "mismatch"),
    Planted("S16", "s16_random_stream.py", "mismatch"),
    Planted("S18", "s18_silent_hook.py", "warning"),
    Planted("S20", "s20_nothing_replayed.py", "inconclusive", names="breaks"),
)
