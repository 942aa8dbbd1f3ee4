"""The catalogue of what goes wrong with captured graphs, as data.

*Loud* hazards (``L``) make the capture fail; *silent* ones (``S``) let it pass and make the replay wrong.
Errors, warnings and cards name a row by its id. Numbers like ``pytorch 87794`` are public reports.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hazard:
    """One row of the catalogue.

    Attributes:
        id: ``L1`` … or ``S1`` ….
        cause: What the program does.
        symptom: How it shows to the user.
        detection: How it is found and told from the others.
        remedy: What to do.
    """

    id: str
    cause: str
    symptom: str
    detection: str
    remedy: str

    @property
    def is_loud(self) -> bool:
        """Whether the capture fails; else the replay is wrong without an error."""
        return self.id.startswith("L")


_ROWS = (
    Hazard(
        "L1",
        cause="the host reads a device value (.item(), .tolist(), .cpu(), print, if, nonzero, a boolean mask, "
        "a slice by a tensor) or makes a device tensor from Python data",
        symptom="error 900, then 901 at a later, innocent call",
        detection="tags of the operation, device-to-host copies, the capture status after every module",
        remedy="break there, or use a form that stays on the device, such as torch.where or scatter",
    ),
    Hazard(
        "L2",
        cause="pinned host memory is allocated or freed",
        symptom="error 900",
        detection="pin_memory and pinned factory calls",
        remedy="allocate it before the capture",
    ),
    Hazard(
        "L3",
        cause="a side stream is used that was not forked from the capture stream",
        symptom="error 900",
        detection="work on a stream that never waited for the capture stream",
        remedy="call side.wait_stream(torch.cuda.current_stream()) first",
    ),
    Hazard(
        "L4",
        cause="a side stream is not joined where a segment ends, and every break ends one",
        symptom="error 904",
        detection="forks and joins, through streams and through events",
        remedy="join that stream before the break",
    ),
    Hazard(
        "L5",
        cause="it waits for work that was launched before the capture",
        symptom="error 905",
        detection="the error code",
        remedy="join that work before the capture, or wait on an external event",
    ),
    Hazard(
        "L6",
        cause="work goes to the legacy default stream inside the capture",
        symptom="error 906",
        detection="the error code",
        remedy="build and warm up on the capture stream",
    ),
    Hazard(
        "L7",
        cause="this or another thread queries streams or events, as a pinning data loader does",
        symptom="error 900 or 901, now and then",
        detection="threads that are alive when it fails",
        remedy='capture with capture_error_mode="thread_local", or stop that thread',
    ),
    Hazard(
        "L8",
        cause="a random generator is used that the graph does not know",
        symptom='"offset … not in capture mode"',
        detection="generator arguments of random operations",
        remedy="register the generator with every segment",
    ),
    Hazard(
        "L9",
        cause="the state of a random generator is read or set while capturing",
        symptom='"current_seed during … capture"',
        detection="the message",
        remedy="move it out of the forward",
    ),
    Hazard(
        "L10",
        cause="a compiler, an autotuner or a lazily loaded module runs for the first time inside the capture",
        symptom="error 900 or 901, or a fault of the GPU (vllm 57227)",
        detection="compile counters that move while capturing",
        remedy="warm up this very shape on the capture stream",
    ),
    Hazard(
        "L11",
        cause="a library's handle or workspace is not there yet",
        symptom='"not initialized"',
        detection="the message",
        remedy="warm up before the capture",
    ),
    Hazard(
        "L12",
        cause="another device than the model's is current",
        symptom="error 900 at the first operation (pytorch 87794)",
        detection="devices of model, stream and context that differ",
        remedy="make the model's device current",
    ),
    Hazard(
        "L13",
        cause="memory runs out, and nothing can be freed while capturing",
        symptom="out of memory",
        detection="free memory before the capture against the pool's growth",
        remedy="leave out that bucket; the smaller ones are captured all the same",
    ),
    Hazard(
        "L14",
        cause="a break is called inside a break, or a capture begun inside a capture",
        symptom="an assertion, or a lost segment",
        detection="a break that is entered while another runs",
        remedy="nothing for breaks: the inner one runs inline; end the outer capture first",
    ),
    Hazard(
        "L15",
        cause="an earlier failure left stream or generator in capture mode",
        symptom="every later capture fails (warp 1957)",
        detection="the state of stream and generator before the capture",
        remedy="restore them, or capture in a child process",
    ),
    Hazard(
        "S1",
        cause="a Python branch depends on the data, or on how many rows there are",
        symptom="the branch taken at capture is taken for ever",
        detection="a replay with inputs that take the other branch",
        remedy="compute both sides and choose with torch.where, or break there",
    ),
    Hazard(
        "S2",
        cause="a Python number (a length, a scale, an offset) is baked into the arguments of kernels",
        symptom="results that stay constant (vllm 51750: accuracy 0.94 to 0.04)",
        detection="a replay with other lengths and values than the capture's",
        remedy="pass it in a device tensor, or break there and read it from the forward context",
    ),
    Hazard(
        "S3",
        cause="the code asks whether it is being captured, and computes something else then",
        symptom="the graph always differs from eager",
        detection="the comparison, and the list of callers of that question",
        remedy="compute the same in both cases",
    ),
    Hazard(
        "S4",
        cause="an input is rebound instead of copied into its static buffer",
        symptom="stale values",
        detection="addresses at replay against those at capture; an input that changes nothing",
        remedy="copy into the static input: buffer.copy_(value)",
    ),
    Hazard(
        "S5",
        cause="an input or a cached tensor is freed after the capture",
        symptom="garbage, or an illegal access (pytorch 167885)",
        detection="tensors that a segment reads and nobody holds; poisoned memory between capture and replay",
        remedy="keep a reference for as long as the graph lives",
    ),
    Hazard(
        "S6",
        cause="the result of a break is held weakly, and no pool owns its memory",
        symptom="a crash in a copy (sglang 30584)",
        detection="poisoned memory between capture and replay",
        remedy="copy it into a boundary that lives in the graph's pool",
    ),
    Hazard(
        "S7",
        cause="an argument of a break is held weakly, and another bucket reuses its block",
        symptom="a wrong token, or an illegal access (sglang 37606)",
        detection="every bucket replayed in shuffled order after all were captured",
        remedy="keep it for as long as the graph lives, or let the pool own it",
    ),
    Hazard(
        "S8",
        cause="the model keeps a cache by address or shape, and the next bucket's capture evicts from it",
        symptom="a crash, a hang, or drift (sglang 34183)",
        detection="tensors that a segment reads and nobody holds; shuffled order",
        remedy="keep what the segment reads for as long as the graph lives",
    ),
    Hazard(
        "S9",
        cause="a break returns a structure that can't be written back",
        symptom="the next segment reads the tensors of the capture, without an error",
        detection="the structure, checked at capture",
        remedy="return tensors, tuples, lists, dicts, dataclasses or None",
    ),
    Hazard(
        "S10",
        cause="padding rows leak into real rows, through norms over rows, experts, convolutions or NaN",
        symptom="wrong results near the edges of a bucket (sglang 30974)",
        detection="poisoned padding at sizes b, b-1 and one above the bucket below",
        remedy="mask the padding, or break there and cut it off",
    ),
    Hazard(
        "S11",
        cause="the caller or the forward keeps a tensor that the next replay overwrites",
        symptom="all results equal the last one",
        detection="two replays, of which the first result is kept",
        remedy="copy it into a buffer made before the capture, buffer.copy_(value), or clone it outside the graph: "
        "in a break, or after the replay",
    ),
    Hazard(
        "S12",
        cause="the forward changes state of the host: counters, lists, cache lengths",
        symptom="the state no longer moves (pytorch 114844)",
        detection="attributes of modules before and after, in eager and in replay",
        remedy="keep that state on the device, or change it in a break",
    ),
    Hazard(
        "S13",
        cause="warm-up or capture changes tensors in place: caches, buffers",
        symptom="the state has moved before the first replay",
        detection="what the tape saw written",
        remedy="restore those tensors after the capture",
    ),
    Hazard(
        "S14",
        cause="a kernel is launched on another stream than the current one",
        symptom="the operation is missing from the graph",
        detection="kernels in eager that the graph lacks",
        remedy="launch on torch.cuda.current_stream()",
    ),
    Hazard(
        "S15",
        cause="the operation that needed a break was captured: no decorator, or a rule that matched nothing",
        symptom="corrupted results (torchtitan 3685)",
        detection="the number of breaks expected; rules that matched nothing",
        remedy="add the break, and hold it with --expect-breaks",
    ),
    Hazard(
        "S16",
        cause="dropout or sampling draws from a random stream that the replay does not advance",
        symptom="every replay draws the same numbers",
        detection="two replays that are equal where two eager runs differ",
        remedy="draw on the device, from a generator that the graph knows, or break there",
    ),
    Hazard(
        "S17",
        cause="two graphs of one pool are replayed at once on two streams",
        symptom="corruption",
        detection="a replay that begins before the last one ended",
        remedy="replay them one after the other",
    ),
    Hazard(
        "S18",
        cause="hooks of modules do not run in a replay",
        symptom="their effects are missing (sglang 38439)",
        detection="hooks on the modules of a segment",
        remedy="move the hook's work into a break or out of the forward",
    ),
    Hazard(
        "S19",
        cause="ranks captured different segments, or some replay while others run eagerly",
        symptom="a hang (sglang 25195)",
        detection="lists of segments, compared across ranks before the first replay",
        remedy="give every rank the same buckets and breaks",
    ),
    Hazard(
        "S20",
        cause="a mode falls back to eager in silence",
        symptom="no gain, or a match that means nothing (sglang 33989)",
        detection="the number of graph launches; none is an error",
        remedy="find out why the graph was not used",
    ),
    Hazard(
        "S21",
        cause="static inputs are written on one stream and the graph runs on another, with nothing between",
        symptom="wrong now and then, right under a debugger",
        detection="a replay on a side stream",
        remedy="write the inputs on the stream that replays, or make it wait for the other",
    ),
)

HAZARDS: dict[str, Hazard] = {row.id: row for row in _ROWS}
"""Every row by its id, loud ones first."""
