"""Runs dreamfleet's command line from a checkout, like the installed command `dreamfleet`."""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    # Python puts this folder first on the path. A person's own modules `actors` or `tests` must be
    # found before the folders here, and `dreamfleet` is imported already.
    sys.path.pop(0)
    sys.exit(main())
