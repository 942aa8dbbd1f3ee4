"""What the verdicts of all ranks mean together; whole runs of several ranks are in `tests/distributed`."""

from __future__ import annotations

import math

from bcg.checking.compare import finite
from bcg.checking.ranks import rank_failure
from bcg.report import AssembledCheck, CheckReport, RankVerdict, decode_report, encode_report
from bcg_cli.views.ranks import verdict_lines
from tests.cli.reports import check_report


def test_a_difference_from_one_process_that_is_no_number_is_in_the_report() -> None:
    found = AssembledCheck(verdict="mismatch", mean_rel_error=finite(math.inf), tolerance=1e-3, num_batches=1)
    rows = [RankVerdict(rank=0, verdict="match", bitwise=True)]
    report = decode_report(encode_report(check_report(ranks=rows, assembled=found)))
    assert isinstance(report, CheckReport) and report.assembled == found
    assert "(mean difference –, at most 0.001)" in [line.plain for line in verdict_lines(rows, found)][-1]
    failure = rank_failure(report)
    assert failure is not None
    assert failure.message.startswith("all ranks together are not one process: mean difference NaN or infinity, at ")
