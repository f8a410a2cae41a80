"""Makes `python -m dreamfleet` run the same command line as the command `dreamfleet`."""

import sys
from pathlib import Path

if sys.path and sys.path[0] in ("", str(Path.cwd())):
    # Python puts the current folder first. A file `yaml.py` there would be imported instead of the
    # package. A person's own module in this folder is found later, when a flag names it.
    sys.path.pop(0)

from dreamfleet.cli import main

sys.exit(main())
