"""Hypothesis strategies for programs and for how they are captured and replayed."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.harness import Scenario
from tests.fuzz.programs import OPERATIONS, WAYS_TO_GIVE, WAYS_TO_RETURN, Break, Explicit, Forget, Op, Step

_operand = st.one_of(st.integers(0, 3), st.integers(0, 31))
_number = st.sampled_from([-1.5, -1.0, 0.0, 0.5, 2.0])
_names = sorted(OPERATIONS)
_writes = [name for name in _names if name.endswith("_")]
_operation = st.builds(Op, st.one_of(st.sampled_from(_names), st.sampled_from(_writes)), _operand, _operand, _number)


def _breaks(inside: st.SearchStrategy[Step]) -> st.SearchStrategy[Break]:
    return st.builds(
        Break,
        body=st.lists(inside, max_size=4).map(tuple),
        takes=st.lists(_operand, min_size=1, max_size=3).map(tuple),
        given=st.sampled_from(sorted(WAYS_TO_GIVE)),
        returns=st.sampled_from(sorted(WAYS_TO_RETURN)),
    )


_inner_break = _breaks(_operation)
_break = _breaks(st.one_of(_operation, _operation, _operation, st.builds(Explicit), _inner_break))
_step: st.SearchStrategy[Step] = st.one_of(
    _operation,
    _operation,
    _operation,
    _operation,
    _break,
    _break,
    st.builds(Explicit),
    st.builds(Forget, _operand),
)

scenarios: st.SearchStrategy[Scenario] = st.builds(
    Scenario,
    program=st.lists(_step, min_size=1, max_size=16).map(tuple),
    buckets=st.sampled_from([(3,), (5, 2), (4, 3, 1), (8, 5, 2)]),
    holds_outputs=st.booleans(),
    inference=st.booleans(),
    taped=st.booleans(),
    seed=st.integers(0, 1000),
)
