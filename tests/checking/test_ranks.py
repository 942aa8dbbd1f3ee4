"""What the verdicts of all ranks mean together; whole runs of several ranks are in `tests/distributed`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcg.checking.compare import finite
from bcg.checking.ranks import check_ranks, rank_failure
from bcg.report import AssembledCheck, CheckBucket, CheckReport, RankVerdict, Verdict, decode_report, encode_report
from bcg_cli.views.ranks import verdict_lines
from tests.cli.reports import check_report
from tests.targets import own_target


def rank(number: int, verdict: Verdict, *reasons: str) -> RankVerdict:
    return RankVerdict(rank=number, verdict=verdict, bitwise=verdict == "match", reasons=list(reasons))


def test_a_mismatch_is_told_before_what_is_unclear() -> None:
    unclear, wrong = rank(0, "inconclusive", "nothing was launched"), rank(1, "mismatch", "replay differs")
    apart = AssembledCheck(verdict="mismatch", mean_rel_error=0.1, tolerance=1e-3, num_batches=1)
    for rows, assembled, message in (
        ([unclear, wrong], apart, "rank 1: replay is not its own eager: replay differs"),
        ([unclear, rank(1, "match")], apart, "all ranks together are not one process: mean difference 0.1, at most "),
        ([rank(0, "match"), rank(1, "inconclusive")], None, "the check is inconclusive on rank 1: see the report"),
        ([unclear, rank(1, "match")], None, "the check is inconclusive on rank 0: nothing was launched"),
    ):
        failure = rank_failure(check_report(ranks=rows, assembled=assembled))
        assert failure is not None and failure.message.startswith(message)
    assert rank_failure(check_report(ranks=[rank(0, "match")])) is None


class Alone:
    """The only rank of a run."""

    rank, size = 0, 1

    def exchange(self, ours: Any) -> list[Any]:
        return [ours]

    def tick(self) -> None:
        pass

    begin = meet = lambda self, what: None


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.rand((num_tokens, 4), generator=generator)}


class Doubling(nn.Module):
    fits, turns = True, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.fits:
            raise torch.OutOfMemoryError("planted")
        return torch.complex(x, -x if self.turns else x) * 2


def test_a_whole_model_that_does_not_fit_is_not_compared() -> None:
    target, whole = (own_target(Doubling(), "cpu", make_inputs) for _ in range(2))
    whole.module.fits = False
    target.alignment = Alone()
    row = CheckBucket(tokens=8, verdict="match", bitwise=True, num_replays=6, num_launches=6)
    report = check_report(verdict="match", buckets=[row])
    found = check_ranks(target, report, lambda: whole)
    assert (found.verdict, found.ranks[0].num_replays, found.assembled) == ("match", 6, None)
    (warning,) = found.warnings
    assert warning.message == "the sharded model was not compared with one process"
    assert warning.cause == "the whole model does not fit into the memory of one process: planted"


@pytest.mark.parametrize("turns", [False, True])
def test_both_parts_of_complex_numbers_are_compared_with_the_whole_model(turns: bool) -> None:
    target, whole = (own_target(Doubling(), "cpu", make_inputs) for _ in range(2))
    whole.module.turns = turns
    target.alignment = Alone()
    row = CheckBucket(tokens=8, verdict="match", bitwise=True, num_replays=6, num_launches=6)
    found = check_ranks(target, check_report(buckets=[row]), lambda: whole)
    assert found.assembled is not None
    assert found.assembled.verdict == ("mismatch" if turns else "match")


def test_a_difference_from_one_process_that_is_no_number_is_in_the_report() -> None:
    found = AssembledCheck(verdict="mismatch", mean_rel_error=finite(math.inf), tolerance=1e-3, num_batches=1)
    rows = [rank(0, "match")]
    report = decode_report(encode_report(check_report(ranks=rows, assembled=found)))
    assert isinstance(report, CheckReport) and report.assembled == found
    assert "(mean difference –, at most 0.001)" in [line.plain for line in verdict_lines(rows, found)][-1]
    failure = rank_failure(report)
    assert failure is not None
    assert failure.message.startswith("all ranks together are not one process: mean difference NaN or infinity, at ")


class WithOtherBits(Alone):
    """A second rank whose digest of the results is another one."""

    size = 2

    def exchange(self, ours: Any) -> list[Any]:
        return [ours, "other bits" if isinstance(ours, str) else ours]


def test_a_rank_that_computes_other_bits_is_a_mismatch() -> None:
    target, whole = (own_target(Doubling(), "cpu", make_inputs) for _ in range(2))
    target.alignment = WithOtherBits()
    row = CheckBucket(tokens=8, verdict="match", bitwise=True, num_replays=6, num_launches=6)
    found = check_ranks(target, check_report(verdict="match", buckets=[row]), lambda: whole)
    assert found.assembled is not None
    assert (found.verdict, found.assembled.differing_ranks) == ("mismatch", [1])
    failure = rank_failure(found)
    assert failure is not None
    assert failure.message == "rank 1 computes other bits than rank 0"


def test_an_error_that_is_no_number_in_one_bucket_is_none_in_the_rank() -> None:
    target = own_target(Doubling(), "cpu", make_inputs)
    target.alignment = Alone()
    rows = [
        CheckBucket(tokens=tokens, verdict="mismatch", bitwise=False, max_rel_error=error)
        for tokens, error in ((8, 0.1), (16, None))
    ]
    assert check_ranks(target, check_report(buckets=rows), None).ranks[0].max_rel_error is None
