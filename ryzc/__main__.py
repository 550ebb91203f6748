"""``python -m ryzc`` is the command ``ryzc``."""

from ryzc.cli import entry

entry()
