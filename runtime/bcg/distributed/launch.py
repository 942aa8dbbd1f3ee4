"""Starting the ranks of a run on this machine, through torch's elastic launcher."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence

from bcg.distributed.failure import Failure, read_failure
from bcg.distributed.member import RUN_PREFIX, log_path
from bcg.errors import BcgError


class RankFailed(BcgError):
    """A rank ended the run; the message is that rank's own."""

    def __init__(self, message: str, *, hint: str | None, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def launch(num_ranks: int, module: str, args: Sequence[str]) -> None:
    """Run ``python -m module args…`` in that many processes and wait for all of them.

    When one fails the others are ended: asked first, killed after 30 seconds. Logs are kept of a failed run only.

    Raises:
        RankFailed: A rank failed; if several did, the one whose own fault it is.
        KeyboardInterrupt: The run was interrupted; all ranks have ended.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What its agent logs about a failed rank is said better below.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    run_id = f"{RUN_PREFIX}{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="bcg-launch-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_ranks,
            run_id=run_id,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        keeps_logs = False
        try:
            elastic_launch(config, sys.executable)("-m", module, *args)
        except ChildFailedError as error:
            keeps_logs = True
            raise _rank_failed(run_id, num_ranks, dict(error.failures)) from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise BcgError(f"the run was ended by {error.sigval.name}") from None
        finally:
            if not keeps_logs:
                shutil.rmtree(log_path(run_id, 0).parent, ignore_errors=True)


def _rank_failed(run_id: str, num_ranks: int, failures: dict[int, object]) -> RankFailed:
    records = {rank: read_failure({"message": getattr(one, "message", None)}) for rank, one in failures.items()}
    waited = next((record for record in records.values() if record is not None and not record.is_own), None)
    told = [records[rank] or _ended(rank, getattr(one, "exitcode", 1), waited) for rank, one in failures.items()]
    left = [
        Failure(rank, "ended with exit code 0 before the run was over", hint="its model's own code ended the process")
        for rank in range(num_ranks)
        if rank not in failures
    ]
    failure = next((failure for failure in [*told, *left] if failure.is_own), told[0])
    shown = failure.for_user(run_id)
    return RankFailed(shown.message, hint=shown.hint, exit_code=shown.exit_code)


def _ended(rank: int, exit_code: int, waited: Failure | None) -> Failure:
    """Describe how a rank ended that could tell nothing.

    Args:
        rank: Which.
        exit_code: Of its process.
        waited: What another rank told that waited for one, if any did: a rank that stands still can't be asked to end.
    """
    if exit_code == -signal.SIGTERM:  # by the agent, after another rank had failed, or from outside
        return Failure(rank, "was ended by SIGTERM, and no other rank had failed", is_own=False)
    if exit_code == -signal.SIGKILL and waited is not None:
        return Failure(rank, f"stood still and was ended; rank {waited.rank} {waited.message}")
    if exit_code < 0:
        return Failure(rank, f"was killed by {signal.Signals(-exit_code).name}")
    return Failure(rank, f"ended with exit code {exit_code}")
