r"""What each part of an agent is worth: the same seeds with it and without.

    python benchmarks/learning/ablation.py --agent gated-rainbow --env NumberGame-v1 \
        --steps 120000 --jobs 2
    python benchmarks/learning/ablation.py --agent dreamwalker --env BipedalWalker-v3 --steps 30000

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

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.learning.curves import read_curve
from benchmarks.learning.report import markdown, mean_and_range
from benchmarks.learning.train import Seed, Training, finish, parser, seeds, training
from benchmarks.processes import ROOT

PRESET: Final = "the preset"
# Of an agent: what is different → the setting that does so.
VARIANTS: Final[dict[str, dict[str, str]]] = {
    "gated-rainbow": {
        "without dreams": "agent.dream_share=0",
        "without clock": "agent.observe_time=false",
        "without gate": "agent.gate=none",
        "without priorities": "agent.prioritized=false",
        "without n-step": "agent.n_step=1",
        "without noise": "agent.noisy_sigma=0",
    },
    "dreamwalker": {
        "without dreams": "agent.dream_share=0",
        "without recent rows": "agent.emphasize_recent=false",
        "without D2RL": "agent.dense=false",
    },
}


def main() -> None:
    of = parser(__doc__, 3, 120_000, agent="gated-rainbow", env="NumberGame-v1", among=VARIANTS)
    args = of.parse_args()
    out = args.out or ROOT / "benchmarks" / "results" / args.env / "ablation" / args.agent
    preset = training(args)
    finish(plan(preset, args.seeds, out), args.jobs)
    found = summarise(preset, args.seeds, out)
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def plan(preset: Training, count: int, out: Path) -> list[Seed]:
    """Every variant of every seed; those of one seed follow each other, as they are compared."""
    variants = {PRESET: preset}
    for name, setting in VARIANTS[preset.agent].items():
        variants[name] = replace(preset, settings=(*preset.settings, setting))
    group = f"{preset.agent}-ablation"
    curves = [seeds(of, folder(name), count, out, group) for name, of in variants.items()]
    return [seed for same in zip(*curves, strict=True) for seed in same]


def folder(name: str) -> str:
    return name.replace(" ", "-")


def summarise(preset: Training, count: int, out: Path) -> dict[str, Any]:
    """What is kept in `out`, a value a seed."""
    variants: dict[str, Any] = {}
    for name, setting in {PRESET: "", **VARIANTS[preset.agent]}.items():
        curves = [read_curve(out / folder(name) / f"seed-{seed}.jsonl") for seed in range(count)]
        variants[name] = {
            "setting": setting,
            "final": [round(curve.final_return, 1) for curve in curves],
            "area": [round(curve.area, 1) for curve in curves],
            "wall_s": [round(curve.wall_s, 1) for curve in curves],
        }
    made = {"agent": preset.agent, "env": preset.env, "steps": preset.steps}
    return {**made, "episodes": preset.episodes, "settings": preset.settings, "variants": variants}


def table(found: Mapping[str, Any]) -> str:
    """Means over seeds (least to most); differences are between runs of one seed."""
    preset = found["variants"][PRESET]
    rows = []
    for name, of in found["variants"].items():
        setting = f"`{of['setting']}`" if of["setting"] else ""
        keys = ("final", "area")
        gained = ["" if of is preset else more(of[key], preset[key]) for key in keys]
        said = [mean_and_range(of[key], ".1f") for key in keys]
        wall = mean_and_range(of["wall_s"], ",.0f") + " s"
        rows.append((name, setting, said[0], gained[0], said[1], gained[1], wall))
    seeds = len(preset["final"])
    heads = (
        f"{found['agent']}, {found['steps']:,} steps of {found['env']}, {seeds} seeds",
        "setting",
        f"mean of {found['episodes']:,} episodes at the end",
        "against the preset",
        "mean over training",
        "against the preset",
        "wall time",
    )
    return markdown(heads, rows)


def more(ours: Sequence[float], others: Sequence[float]) -> str:
    """Differences seed by seed."""
    pairs = zip(ours, others, strict=True)
    return mean_and_range([one - other for one, other in pairs], "+.1f")


def summaries(results: Path) -> list[Path]:
    """The summaries of all ablations in a folder of results."""
    return sorted(results.glob("*/ablation/*/summary.json"))


if __name__ == "__main__":
    main()
