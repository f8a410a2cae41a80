"""Writes `docs/settings.md` and `docs/metrics.md`, two pages that are generated from the code.

python docs/generate.py
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from dreamfleet.runtime import metric_reference, reference  # noqa: E402 - found beside this folder

(DOCS / "settings.md").write_text(reference.page(), encoding="utf-8")
(DOCS / "metrics.md").write_text(metric_reference.page(), encoding="utf-8")
