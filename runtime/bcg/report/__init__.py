"""The report file: what a command found, as plain data that views and later commands read.

Nothing in here measures, and nothing imports torch.
"""

from bcg.report.capture import BucketStatus, CaptureBucket, CaptureReport, CaptureTotals
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
)

__all__ = [
    "MAX_REPORT_BYTES",
    "SCHEMA_VERSION",
    "BreakRow",
    "BreakSource",
    "BucketStatus",
    "CaptureBucket",
    "CaptureReport",
    "CaptureTotals",
    "Environment",
    "ModelInfo",
    "ModelSource",
    "OptionValue",
    "Report",
    "ReportWarning",
    "SegmentRow",
    "Weights",
    "check_output_path",
    "decode_report",
    "encode_report",
    "read_report",
    "write_report",
]
