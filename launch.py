"""The command line of a checkout. The installed command `dreamfleet` is the same."""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    # Python put this folder first on the path. A person's own `actors` or `tests` must win over
    # the folders here, and `dreamfleet` has been found already.
    sys.path.pop(0)
    sys.exit(main())
