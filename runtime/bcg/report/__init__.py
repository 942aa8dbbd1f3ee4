"""The report file: what a command found, as plain data that views and later commands read.

Nothing in here measures, and nothing imports torch.
"""

from bcg.report.capture import BucketStatus as BucketStatus
from bcg.report.capture import CaptureBucket as CaptureBucket
from bcg.report.capture import CaptureReport as CaptureReport
from bcg.report.capture import CaptureTotals as CaptureTotals
from bcg.report.check import CheckBucket as CheckBucket
from bcg.report.check import CheckReport as CheckReport
from bcg.report.check import CheckTiming as CheckTiming
from bcg.report.check import Divergence as Divergence
from bcg.report.check import PromptCheck as PromptCheck
from bcg.report.common import SCHEMA_VERSION as SCHEMA_VERSION
from bcg.report.common import BreakRow as BreakRow
from bcg.report.common import BreakSource as BreakSource
from bcg.report.common import Environment as Environment
from bcg.report.common import MappedReport as MappedReport
from bcg.report.common import MapRow as MapRow
from bcg.report.common import ModelInfo as ModelInfo
from bcg.report.common import ModelSource as ModelSource
from bcg.report.common import OptionValue as OptionValue
from bcg.report.common import ReportHead as ReportHead
from bcg.report.common import ReportWarning as ReportWarning
from bcg.report.common import SegmentRow as SegmentRow
from bcg.report.common import Verdict as Verdict
from bcg.report.common import Weights as Weights
from bcg.report.file import MAX_REPORT_BYTES as MAX_REPORT_BYTES
from bcg.report.file import Report as Report
from bcg.report.file import check_output_path as check_output_path
from bcg.report.file import decode_report as decode_report
from bcg.report.file import encode_report as encode_report
from bcg.report.file import read_report as read_report
from bcg.report.file import write_report as write_report
from bcg.report.file import write_whole as write_whole
from bcg.report.findings import AutomaticBreak as AutomaticBreak
from bcg.report.findings import BreakSize as BreakSize
from bcg.report.findings import BucketFitRow as BucketFitRow
from bcg.report.findings import Card as Card
from bcg.report.plan import InputRow as InputRow
from bcg.report.plan import PlanBucket as PlanBucket
from bcg.report.plan import PlanReport as PlanReport
from bcg.report.plan import PlanTotals as PlanTotals
from bcg.report.profile import MODES as MODES
from bcg.report.profile import ModeName as ModeName
from bcg.report.profile import ModeRow as ModeRow
from bcg.report.profile import ModeStatus as ModeStatus
from bcg.report.profile import ModeSummary as ModeSummary
from bcg.report.profile import ProfileBucket as ProfileBucket
from bcg.report.profile import ProfileReport as ProfileReport
from bcg.report.profile import ProfileTotals as ProfileTotals
from bcg.report.profile import Timeline as Timeline
from bcg.report.profile import TimelineStep as TimelineStep
from bcg.report.ranks import AssembledCheck as AssembledCheck
from bcg.report.ranks import RankRow as RankRow
from bcg.report.ranks import RankVerdict as RankVerdict
