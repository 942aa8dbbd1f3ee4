"""What eager forwards do to state that replays don't: fill it anew for another size, or carry it on."""

from __future__ import annotations

from dataclasses import dataclass

from bcg.checking.plan import Trial, batch_of
from bcg.checking.trace import ForwardTrace, trace_forward
from bcg.checking.verdicts import Verification
from bcg.runner import GraphRunner
from bcg.state import ModelState, Snapshot, changes
from bcg.structure import storage_address


@dataclass(frozen=True)
class Upkeep:
    """Attribute paths of state that eager forwards look after.

    Attributes:
        refilled: Changed by a forward of another size than the last one's, and left alone by the next of the same.
        carried: Tensors that every forward reads and then replaces by others.
        in_place: Tensors whose contents every forward changes.
    """

    refilled: frozenset[str] = frozenset()
    carried: frozenset[str] = frozenset()
    in_place: frozenset[str] = frozenset()


def find_upkeep(runner: GraphRunner, verification: Verification, state: ModelState, base: Snapshot) -> Upkeep:
    """Run two eager forwards of one size, one after the other, and see what each does to the state.

    Args:
        runner: Whose replays were compared.
        verification: What was found.
        state: The target's; left as it was.
        base: The state after the captures.
    """
    touched = [bucket for bucket in verification.buckets if bucket.state_changes or bucket.kept_outputs]
    if not touched:
        return Upkeep()
    tokens = max(touched, key=lambda bucket: len(bucket.state_changes)).tokens
    state.restore(base)
    first = _trace(runner, tokens)
    after_first = state.save()
    second = _trace(runner, tokens)
    after_second = state.save()
    state.restore(base)
    changed = {change.path for change in changes(base, after_first)}
    is_cache = [operation.name for operation in first.operations] != [operation.name for operation in second.operations]
    inputs = {storage_address(view) for view in runner.input_views(tokens).values()}
    read = (first.externals.keys() | first.read_in_breaks) - inputs
    settled = changed - {change.path for change in changes(after_first, after_second)}
    return Upkeep(
        refilled=frozenset(settled if is_cache else ()),
        carried=frozenset(
            path
            for path, tensor in base.tensors.items()
            if after_first.tensors.get(path) is not tensor and storage_address(tensor) in read
        ),
        in_place=frozenset(
            path for path in changed & base.tensors.keys() if after_first.tensors.get(path) is base.tensors[path]
        ),
    )


def _trace(runner: GraphRunner, tokens: int) -> ForwardTrace:
    batch = batch_of(Trial(tokens, (tokens,), seed=1), runner.target)
    return trace_forward(
        lambda context: runner.eager_padded(batch, None, context), batch.request_lengths, runner.target.device
    )
