"""Where the program begins: Ctrl-C ends it alike while the command line is still being imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line of this process; returns its exit code."""
    try:
        from bcg_cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return run()
