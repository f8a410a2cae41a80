r"""Runs an ablation: trains an agent with all of its parts, and again without one part at a time.

    python benchmarks/learning/ablation.py --agent gated-rainbow --env NumberGame-v1 \
        --steps 120000 --jobs 2
    python benchmarks/learning/ablation.py --agent dreamwalker --env BipedalWalker-v3 --steps 30000

All variants train with the same seeds. The records of the runs and a summary are written to
`--out`, by default `benchmarks/results/ENV/ablation/AGENT`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.formatting import markdown_table, mean_and_range
from benchmarks.learning.curves import read_curve, with_present_settings
from benchmarks.learning.train import SeedRun, Training, finish_all, parser, seed_runs, training
from benchmarks.processes import RESULTS

PRESET: Final = "the preset"
VARIANTS: Final[dict[str, dict[str, str]]] = {  # agent → variant → the setting that differs
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
    parsing = parser(
        __doc__, 3, 120_000, agent="gated-rainbow", env="NumberGame-v1", among=VARIANTS
    )
    args = parsing.parse_args()
    out = args.out or RESULTS / args.env / "ablation" / args.agent
    preset = training(args)
    finish_all(plan(preset, args.seeds, out), args.jobs)
    found = summarise(preset, args.seeds, out)
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{title(found)}\n\n{table(found)}")


def plan(preset: Training, count: int, out: Path) -> list[SeedRun]:
    """Returns the training runs of an ablation: each variant of `preset` with seeds 0 to count - 1.

    A variant is the whole agent (`preset`), or the agent without one of its parts. out: folder of
    the records.
    """
    variants = {PRESET: preset}
    for name, setting in VARIANTS[preset.agent].items():
        variants[name] = replace(preset, settings=(*preset.settings, setting))
    group = f"{preset.agent}-ablation"
    curves = [
        seed_runs(variant, folder(name), count, out, group) for name, variant in variants.items()
    ]
    return [run for runs_of_seed in zip(*curves, strict=True) for run in runs_of_seed]


def folder(variant: str) -> str:
    """Returns the name of a variant's folder: the name of the variant with hyphens for spaces.

    A variant is an agent without one of its parts, such as `without gate`.
    """
    return variant.replace(" ", "-")


def summarise(preset: Training, count: int, out: Path) -> dict[str, Any]:
    """Returns the results of all variants of an ablation from its records, one value per seed.

    preset: settings of the whole agent. count: number of seeds. out: folder of the records.
    """
    variants: dict[str, Any] = {}
    for name, setting in {PRESET: "", **VARIANTS[preset.agent]}.items():
        curves = [read_curve(out / folder(name) / f"seed-{seed}.jsonl") for seed in range(count)]
        variants[name] = {
            "setting": setting,
            "final": [round(curve.final_return, 1) for curve in curves],
            "area": [round(curve.mean_return, 1) for curve in curves],
            "wall_s": [round(float(curve.wall_s[-1]), 1) for curve in curves],
        }
    return {
        "agent": preset.agent,
        "env": preset.env,
        "steps": preset.steps,
        "episodes": preset.eval_episodes,
        "settings": preset.settings,
        "variants": variants,
    }


def title(found: Mapping[str, Any]) -> str:
    """Returns the caption of an ablation's table, which explains the columns.

    found: the result of `summarise`.
    """
    seeds = len(found["variants"][PRESET]["final"])
    return (
        f"Ablation of `{found['agent']}`: {found['steps']:,} steps of {found['env']}, {seeds} "
        "seeds. Each variant is the preset (the agent's settings for this environment) with one "
        f"part of the agent switched off. Return after training: mean of {found['episodes']:,} "
        "greedy episodes. Mean return: mean of all evaluations during training. Difference: the "
        "column to its left, variant minus preset, computed for each seed. Cells are means over "
        "seeds (min to max)."
    )


def table(found: Mapping[str, Any]) -> str:
    """Returns the Markdown table of an ablation, with one row per variant of the agent.

    A variant is the agent without one of its parts, or the whole agent. found: the result of
    `summarise`.
    """
    preset = found["variants"][PRESET]
    rows = []
    for name, variant in found["variants"].items():
        setting = f"`{with_present_settings(variant['setting'])}`" if variant["setting"] else ""
        cells = []
        for key in ("final", "area"):
            cells.append(mean_and_range(variant[key], ".1f"))
            cells.append("" if variant is preset else difference(variant[key], preset[key]))
        minutes = [seconds / 60 for seconds in variant["wall_s"]]
        rows.append((name, setting, *cells, mean_and_range(minutes, ".1f")))
    heads = (
        "Variant",
        "Setting",
        "Return after training",
        "Difference",
        "Mean return",
        "Difference",
        "Wall time (min)",
    )
    return markdown_table(heads, rows)


def difference(variant: Sequence[float], preset: Sequence[float]) -> str:
    """Returns mean and range of `variant` minus `preset` as text.

    variant, preset: returns without one part of the agent, and of the whole agent, one value per
    seed. The difference is taken seed by seed.
    """
    pairs = zip(variant, preset, strict=True)
    return mean_and_range([ours - other for ours, other in pairs], "+.1f")


def summary_files(results: Path) -> list[Path]:
    """Returns the paths of `summary.json` of all ablations in a folder of results."""
    return sorted(results.glob("*/ablation/*/summary.json"))


if __name__ == "__main__":
    main()
