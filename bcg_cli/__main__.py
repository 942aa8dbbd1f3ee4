"""``python -m bcg_cli``."""

import sys

from bcg_cli.app import main

sys.exit(main())
