"""``python -m bcg_cli``."""

import sys

from bcg_cli.entry import main

sys.exit(main())
