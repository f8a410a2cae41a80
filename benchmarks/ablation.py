"""What each part of an agent is worth: the same seeds with it and without.

    python benchmarks/ablation.py --agent gated-rainbow --env NumberGame-v1 --steps 120000 --jobs 2
    python benchmarks/ablation.py --agent dreamwalker --env BipedalWalker-v3 --steps 30000 \\
        --set agent.share=0.25

Seeds that are done are not run again, and an interrupted one is resumed. What is kept goes to
`benchmarks/results/ENV/ablation/AGENT`, with the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.curves import read_curve
from benchmarks.learning import Seed, Training, finish, parser, seeds, training
from benchmarks.processes import ROOT
from benchmarks.report import markdown, mean_and_range

FULL: Final = "full"
WITHOUT: Final[dict[str, dict[str, str]]] = {  # agent → what is left out → the setting that does so
    "gated-rainbow": {
        "dreams": "agent.share=0",
        "clock": "agent.clock=false",
        "gate": "agent.gate=none",
        "priorities": "agent.prioritized=false",
        "n-step": "agent.n=1",
        "noise": "agent.noise=0",
    },
    "dreamwalker": {
        "dreams": "agent.share=0",
        "recent rows": "agent.recent=false",
        "D2RL": "agent.dense=false",
    },
}


def main() -> None:
    of = parser(__doc__, 3, 120_000, agent="gated-rainbow", env="NumberGame-v1", among=WITHOUT)
    args = of.parse_args()
    out = args.out or ROOT / "benchmarks" / "results" / args.env / "ablation" / args.agent
    whole = training(args)
    finish(plan(whole, args.seeds, out), args.jobs)
    found = summarise(whole, args.seeds, out)
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def plan(whole: Training, count: int, out: Path) -> list[Seed]:
    """Every variant of every seed; those of one seed follow each other, as they are compared."""
    variants = {FULL: whole}
    for part, setting in WITHOUT[whole.agent].items():
        variants[part] = replace(whole, settings=(*whole.settings, setting))
    group = f"{whole.agent}-ablation"
    curves = [seeds(of, name, count, out, group) for name, of in variants.items()]
    return [seed for same in zip(*curves, strict=True) for seed in same]


def summarise(whole: Training, count: int, out: Path) -> dict[str, Any]:
    """What is kept in `out`, a value a seed."""
    parts: dict[str, Any] = {}
    for part, setting in {FULL: "", **WITHOUT[whole.agent]}.items():
        curves = [read_curve(out / part / f"seed-{seed}.jsonl") for seed in range(count)]
        parts[part] = {
            "setting": setting,
            "final": [round(curve.final_return, 1) for curve in curves],
            "area": [round(curve.area, 1) for curve in curves],
            "wall_s": [round(curve.wall_s, 1) for curve in curves],
        }
    made = {"agent": whole.agent, "env": whole.env, "steps": whole.steps}
    return {**made, "episodes": whole.episodes, "settings": whole.settings, "parts": parts}


def table(found: Mapping[str, Any]) -> str:
    """Means over seeds (least to most); differences are between runs of one seed."""
    whole = found["parts"][FULL]
    rows = []
    for part, of in found["parts"].items():
        name = "all of it" if part == FULL else f"without {part}"
        setting = f"`{of['setting']}`" if of["setting"] else ""
        lost = (
            ("", "") if part == FULL else [less(of[key], whole[key]) for key in ("final", "area")]
        )
        said = [mean_and_range(of[key], ".1f") for key in ("final", "area")]
        wall = mean_and_range(of["wall_s"], ",.0f") + " s"
        rows.append((name, setting, said[0], lost[0], said[1], lost[1], wall))
    seeds = len(whole["final"])
    heads = (
        f"{found['agent']}, {found['steps']:,} steps of {found['env']}, {seeds} seeds",
        "setting",
        f"mean of {found['episodes']:,} episodes at the end",
        "against all of it",
        "mean over training",
        "against all of it",
        "wall time",
    )
    return markdown(heads, rows)


def less(ours: Sequence[float], whole: Sequence[float]) -> str:
    """Differences seed by seed."""
    pairs = zip(ours, whole, strict=True)
    return mean_and_range([one - other for one, other in pairs], "+.1f")


def summaries(results: Path) -> list[Path]:
    """The summaries of all ablations in a folder of results."""
    return sorted(results.glob("*/ablation/*/summary.json"))


if __name__ == "__main__":
    main()
