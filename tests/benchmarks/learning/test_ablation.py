"""Tests ablations, which train an agent without one of its parts: plan, differences and table."""

import json
from itertools import combinations

import pytest

from benchmarks.learning.ablation import (
    PRESET,
    VARIANTS,
    folder,
    plan,
    summarise,
    summary_files,
    table,
    title,
)
from benchmarks.learning.train import Training
from benchmarks.tables import tables
from dreamfleet import cli
from dreamfleet.agents.dreamwalker import config as dreamwalker
from dreamfleet.agents.gated_rainbow import config as gated_rainbow
from dreamfleet.core.config import apply
from tests.benchmarks.learning.test_report import write_records

NUMBER_GAME = Training("gated-rainbow", "NumberGame-v1", 1000, 500, 100)
WALKER = Training("dreamwalker", "BipedalWalker-v3", 1000, 500, 100)


@pytest.mark.parametrize(
    ("preset", "agent_config"),
    [(NUMBER_GAME, gated_rainbow.Config()), (WALKER, dreamwalker.Config())],
)
def test_every_variant_is_a_valid_configuration_that_differs_from_all_others(
    preset, agent_config, tmp_path
):
    configs = []
    for run in plan(preset, 1, tmp_path):
        config = cli.configured(run.training.command(run.seed)).config
        configs.append(apply(agent_config, config.agent_options))
    assert len(configs) == 1 + len(VARIANTS[preset.agent])
    assert all(first != second for first, second in combinations(configs, 2))


def test_all_variants_of_a_seed_come_before_the_next_seed_and_have_separate_folders(tmp_path):
    runs = plan(NUMBER_GAME, 2, tmp_path)
    names = [folder(name) for name in (PRESET, *VARIANTS["gated-rainbow"])]
    assert [(run.seed, run.name) for run in runs] == [(s, name) for s in (0, 1) for name in names]
    assert len({run.run for run in runs}) == len({run.record for run in runs}) == len(runs)
    assert all("ablation" in str(run.run) for run in runs)


def test_differences_are_between_runs_of_the_same_seed(tmp_path):
    out = tmp_path / "NumberGame-v1" / "ablation" / "gated-rainbow"
    write_records(out, folder(PRESET), [100.0, 300.0], [0.0, 200.0])
    for name in VARIANTS["gated-rainbow"]:
        write_records(out, folder(name), [50.0, 310.0], [0.0, 100.0])
    found = json.loads(json.dumps(summarise(NUMBER_GAME, 2, out)))
    lines = table(found).splitlines()
    assert "`gated-rainbow`: 1,000 steps of NumberGame-v1, 2 seeds" in title(found)
    assert lines[2] == (
        "| the preset |  | 250.0 (200.0 to 300.0) |  "
        "| 150.0 (100.0 to 200.0) |  | 0.3 (0.3 to 0.3) |"
    )
    assert lines[3] == (
        "| without dreams | `agent.dream_share=0` | 205.0 (100.0 to 310.0) "
        "| -45.0 (-100.0 to +10.0) | 115.0 (50.0 to 180.0) | -35.0 (-50.0 to -20.0) "
        "| 0.3 (0.3 to 0.3) |"
    )
    (out / "summary.json").write_text(json.dumps(found))
    assert summary_files(tmp_path) == [out / "summary.json"]
    assert table(found) in tables(tmp_path)
