"""The report file: what a command found, as plain data that views and later commands read.

Nothing in here measures, and nothing imports torch.
"""

from bcg.report.capture import BucketStatus, CaptureBucket, CaptureReport, CaptureTotals
from bcg.report.check import CheckBucket, CheckReport, CheckTiming, Divergence, PromptCheck
from bcg.report.common import (
    SCHEMA_VERSION,
    BreakRow,
    BreakSource,
    Environment,
    ModelInfo,
    ModelSource,
    OptionValue,
    ReportWarning,
    SegmentRow,
    Verdict,
    Weights,
)
from bcg.report.file import (
    MAX_REPORT_BYTES,
    Report,
    check_output_path,
    decode_report,
    encode_report,
    read_report,
    write_report,
    write_whole,
)
from bcg.report.findings import AutomaticBreak, BreakSize, BucketFitRow, Card
from bcg.report.plan import InputRow, PlanBucket, PlanReport, PlanTotals
from bcg.report.profile import (
    MODES,
    ModeName,
    ModeRow,
    ModeStatus,
    ModeSummary,
    ProfileBucket,
    ProfileReport,
    ProfileTotals,
    Timeline,
    TimelineStep,
)
from bcg.report.ranks import AssembledCheck, RankRow, RankVerdict

__all__ = [
    "MAX_REPORT_BYTES",
    "MODES",
    "SCHEMA_VERSION",
    "AssembledCheck",
    "AutomaticBreak",
    "BreakRow",
    "BreakSize",
    "BreakSource",
    "BucketFitRow",
    "BucketStatus",
    "CaptureBucket",
    "CaptureReport",
    "CaptureTotals",
    "Card",
    "CheckBucket",
    "CheckReport",
    "CheckTiming",
    "Divergence",
    "Environment",
    "InputRow",
    "ModeName",
    "ModeRow",
    "ModeStatus",
    "ModeSummary",
    "ModelInfo",
    "ModelSource",
    "OptionValue",
    "PlanBucket",
    "PlanReport",
    "PlanTotals",
    "ProfileBucket",
    "ProfileReport",
    "ProfileTotals",
    "PromptCheck",
    "RankRow",
    "RankVerdict",
    "Report",
    "ReportWarning",
    "SegmentRow",
    "Timeline",
    "TimelineStep",
    "Verdict",
    "Weights",
    "check_output_path",
    "decode_report",
    "encode_report",
    "read_report",
    "write_report",
    "write_whole",
]
