"""The catalogue of what goes wrong with captured graphs, as data.

*Loud* hazards (``L``) make the capture fail; *silent* ones (``S``) let it pass and make the replay wrong.
Errors, warnings and cards name a row by its id. ``docs/hazards.md`` adds how each shows and is found.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hazard:
    """One row of the catalogue.

    Attributes:
        id: ``L1`` … or ``S1`` ….
        cause: What the program does.
        remedy: What to do.
    """

    id: str
    cause: str
    remedy: str


_ROWS = (
    Hazard(
        "L1",
        cause="the host reads a device value (.item(), .tolist(), .cpu(), print, if, nonzero, a boolean mask, "
        "a slice by a tensor) or makes a device tensor from Python data",
        remedy="break there, or use a form that stays on the device, such as torch.where or scatter",
    ),
    Hazard(
        "L2",
        cause="pinned host memory is allocated or freed",
        remedy="allocate it before the capture",
    ),
    Hazard(
        "L3",
        cause="a side stream is used that was not forked from the capture stream",
        remedy="call side.wait_stream(torch.cuda.current_stream()) first",
    ),
    Hazard(
        "L4",
        cause="a side stream is not joined where a segment ends, and every break ends one",
        remedy="join that stream before the break",
    ),
    Hazard(
        "L5",
        cause="it waits for work that was launched before the capture",
        remedy="join that work before the capture, or wait on an external event",
    ),
    Hazard(
        "L6",
        cause="work goes to the legacy default stream inside the capture",
        remedy="build and warm up on the capture stream",
    ),
    Hazard(
        "L7",
        cause="this or another thread queries streams or events, as a pinning data loader does",
        remedy='capture with capture_error_mode="thread_local", or stop that thread',
    ),
    Hazard(
        "L8",
        cause="a random generator is used that the graph does not know",
        remedy="register the generator with every segment",
    ),
    Hazard(
        "L9",
        cause="the state of a random generator is read or set while capturing",
        remedy="move it out of the forward",
    ),
    Hazard(
        "L10",
        cause="a compiler, an autotuner or a lazily loaded module runs for the first time inside the capture",
        remedy="warm up this very shape on the capture stream",
    ),
    Hazard(
        "L11",
        cause="a library's handle or workspace is not there yet",
        remedy="warm up before the capture",
    ),
    Hazard(
        "L12",
        cause="another device than the model's is current",
        remedy="make the model's device current",
    ),
    Hazard(
        "L13",
        cause="memory runs out, and nothing can be freed while capturing",
        remedy="leave out that bucket; the smaller ones are captured all the same",
    ),
    Hazard(
        "L14",
        cause="a break is called inside a break, or a capture begun inside a capture",
        remedy="nothing for breaks: the inner one runs inline; end the outer capture first",
    ),
    Hazard(
        "L15",
        cause="an earlier failure left stream or generator in capture mode",
        remedy="restore them, or capture in a child process",
    ),
    Hazard(
        "S1",
        cause="a Python branch depends on the data, or on how many rows there are",
        remedy="compute both sides and choose with torch.where, or break there",
    ),
    Hazard(
        "S2",
        cause="a Python number (a length, a scale, an offset) is baked into the arguments of kernels",
        remedy="pass it in a device tensor, or break there and read it from the forward context",
    ),
    Hazard(
        "S3",
        cause="the code asks whether it is being captured, and computes something else then",
        remedy="compute the same in both cases",
    ),
    Hazard(
        "S4",
        cause="an input is rebound instead of copied into its static buffer",
        remedy="copy into the static input: buffer.copy_(value)",
    ),
    Hazard(
        "S5",
        cause="an input or a cached tensor is freed after the capture",
        remedy="keep a reference for as long as the graph lives",
    ),
    Hazard(
        "S6",
        cause="the result of a break is held weakly, and no pool owns its memory",
        remedy="copy it into a boundary that lives in the graph's pool",
    ),
    Hazard(
        "S7",
        cause="an argument of a break is held weakly, and another bucket reuses its block",
        remedy="keep it for as long as the graph lives, or let the pool own it",
    ),
    Hazard(
        "S8",
        cause="the model keeps a cache by address or shape, and the next bucket's capture evicts from it",
        remedy="keep what the segment reads for as long as the graph lives",
    ),
    Hazard(
        "S9",
        cause="a break returns a structure that can't be written back",
        remedy="return tensors, tuples, lists, dicts, dataclasses or None",
    ),
    Hazard(
        "S10",
        cause="padding rows leak into real rows, through norms over rows, experts, convolutions or NaN",
        remedy="mask the padding, or break there and cut it off",
    ),
    Hazard(
        "S11",
        cause="the caller or the forward keeps a tensor that the next replay overwrites",
        remedy="copy it into a buffer made before the capture, buffer.copy_(value), or clone it outside the graph: "
        "in a break, or after the replay",
    ),
    Hazard(
        "S12",
        cause="the forward changes state of the host: counters, lists, cache lengths",
        remedy="keep that state on the device, or change it in a break",
    ),
    Hazard(
        "S13",
        cause="warm-up or capture changes tensors in place: caches, buffers",
        remedy="restore those tensors after the capture",
    ),
    Hazard(
        "S14",
        cause="a kernel is launched on another stream than the current one",
        remedy="launch on torch.cuda.current_stream()",
    ),
    Hazard(
        "S15",
        cause="the operation that needed a break was captured: no decorator, or a rule that matched nothing",
        remedy="add the break, and hold it with --expect-breaks",
    ),
    Hazard(
        "S16",
        cause="dropout or sampling draws from a random stream that the replay does not advance",
        remedy="draw on the device, from a generator that the graph knows, or break there",
    ),
    Hazard(
        "S17",
        cause="two graphs of one pool are replayed at once on two streams",
        remedy="replay them one after the other",
    ),
    Hazard(
        "S18",
        cause="hooks of modules do not run in a replay",
        remedy="move the hook's work into a break or out of the forward",
    ),
    Hazard(
        "S19",
        cause="ranks captured different segments, or some replay while others run eagerly",
        remedy="give every rank the same buckets and breaks",
    ),
    Hazard(
        "S20",
        cause="a mode falls back to eager in silence",
        remedy="find out why the graph was not used",
    ),
    Hazard(
        "S21",
        cause="static inputs are written on one stream and the graph runs on another, with nothing between",
        remedy="write the inputs on the stream that replays, or make it wait for the other",
    ),
)

HAZARDS: dict[str, Hazard] = {row.id: row for row in _ROWS}
"""Every row by its id, loud ones first."""


def is_loud(hazard: str) -> bool:
    """Tell by the id of a row whether the capture fails; else the replay is wrong without an error."""
    return hazard.startswith("L")
