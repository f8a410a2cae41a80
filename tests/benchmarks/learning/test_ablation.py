"""The same seeds with each part and without."""

import json
from itertools import combinations

import pytest

from benchmarks.learning.ablation import PRESET, VARIANTS, folder, plan, summaries, summarise, table
from benchmarks.learning.train import Training
from benchmarks.tables import details
from dreamfleet import cli
from dreamfleet.agents.dreamwalker import config as dreamwalker
from dreamfleet.agents.gated_rainbow import config as gated_rainbow
from dreamfleet.core.config import apply
from tests.benchmarks.learning.test_report import method

PLAYING = Training("gated-rainbow", "NumberGame-v1", 1000, 500, 100)
WALKING = Training("dreamwalker", "BipedalWalker-v3", 1000, 500, 100)


@pytest.mark.parametrize(
    ("preset", "agent_config"), [(PLAYING, gated_rainbow.Config()), (WALKING, dreamwalker.Config())]
)
def test_every_setting_is_understood_and_changes_something(preset, agent_config, tmp_path):
    built = []
    for job in plan(preset, 1, tmp_path):
        config = cli.configured(job.training.command(job.seed)).config
        built.append(apply(agent_config, config.agent_options))
    assert len(built) == 1 + len(VARIANTS[preset.agent])
    assert all(one != other for one, other in combinations(built, 2))


def test_variants_of_a_seed_follow_each_other_in_folders_of_their_own(tmp_path):
    jobs = plan(PLAYING, 2, tmp_path)
    names = [folder(name) for name in (PRESET, *VARIANTS["gated-rainbow"])]
    assert [(job.seed, job.name) for job in jobs] == [(s, name) for s in (0, 1) for name in names]
    assert len({job.run for job in jobs}) == len({job.kept for job in jobs}) == len(jobs)
    assert all("ablation" in str(job.run) for job in jobs)


def test_differences_are_between_runs_of_one_seed(tmp_path):
    out = tmp_path / "NumberGame-v1" / "ablation" / "gated-rainbow"
    method(out, folder(PRESET), [100.0, 300.0], [0.0, 200.0])
    for name in VARIANTS["gated-rainbow"]:
        method(out, folder(name), [50.0, 310.0], [0.0, 100.0])
    found = json.loads(json.dumps(summarise(PLAYING, 2, out)))
    lines = table(found).splitlines()
    assert "gated-rainbow, 1,000 steps of NumberGame-v1, 2 seeds" in lines[0]
    assert lines[2] == (
        "| the preset |  | 250.0 (200.0 to 300.0) |  "
        "| 150.0 (100.0 to 200.0) |  | 20 (20 to 20) s |"
    )
    assert lines[3] == (
        "| without dreams | `agent.dream_share=0` | 205.0 (100.0 to 310.0) "
        "| -45.0 (-100.0 to +10.0) | 115.0 (50.0 to 180.0) | -35.0 (-50.0 to -20.0) "
        "| 20 (20 to 20) s |"
    )
    (out / "summary.json").write_text(json.dumps(found))
    assert summaries(tmp_path) == [out / "summary.json"]
    assert table(found) in details(tmp_path)
