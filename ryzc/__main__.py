"""``python -m ryzc`` is the command ``ryzc``."""

import sys

from ryzc.cli import main

sys.exit(main())
