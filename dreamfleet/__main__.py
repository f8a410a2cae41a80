"""`python -m dreamfleet` is the command `dreamfleet`."""

import sys

from dreamfleet.cli import main

sys.exit(main())
