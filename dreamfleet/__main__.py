"""`python -m dreamfleet` is the command `dreamfleet`."""

import sys
from pathlib import Path

if sys.path and sys.path[0] in ("", str(Path.cwd())):
    # Python put the current folder first, where a file called `yaml.py` would be taken for the
    # package. A person's own module is found there when it is named.
    sys.path.pop(0)

from dreamfleet.cli import main

sys.exit(main())
