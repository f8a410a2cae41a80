"""Tests the whole life of a run of Barlow Dreamer: training, resume, evaluation, dreams."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from PIL import Image, ImageSequence

from dreamfleet import cli
from dreamfleet.core import checkpoint
from dreamfleet.runtime.dreaming import predicting_groups, record
from dreamfleet.runtime.evaluate import player

SETTINGS = {
    "agent.window": 8,
    "agent.batch": 4,
    "agent.warmup": 50,
    "agent.updates_per_step": 0.125,
    "agent.probe": "true",
    "train.chunk": 4,
    "train.eval_every": 0,
}
FLAGS = [flag for name, value in SETTINGS.items() for flag in ("--set", f"{name}={value}")]
PLAN = ["agent.plan=true", "agent.plan_candidates=8", "agent.plan_horizon=3"]


def limiter_of(run):
    path = checkpoint.newest(run / "checkpoints", agent="barlow-dreamer", env="PixelCatch-v1")
    return checkpoint.load(path)["replay"]["real"]["limiter"]


@pytest.mark.slow
def test_a_run_on_images_is_resumed_evaluated_planned_and_filmed(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    start = ["--agent", "barlow-dreamer", "--env", "PixelCatch-v1", "--num-actors", "1"]
    assert cli.main([*start, "--steps", "300", "--run-dir", str(run), "--local", *FLAGS]) == 0
    assert cli.main(["--resume", str(run), "--steps", "340"]) == 0
    limiter = limiter_of(run)
    dreams = sum(limiter["samples"].values())
    assert limiter["steps"] == 340 and 30 <= dreams <= (340 - 50) * 0.125 + 4

    for settings in ([], PLAN):
        capsys.readouterr()
        changes = [flag for setting in settings for flag in ("--set", setting)]
        assert cli.main(["eval", str(run), "--episodes", "1", "--json", *changes]) == 0
        assert 0 <= json.loads(capsys.readouterr().out)["return_mean"] <= 10

    assert cli.main(["dream", str(run), "--out", str(out), "--episodes=1", "--steps=6"]) == 0
    films = sorted(out.glob("obs_*.gif"))
    assert films
    found = player(run, "latest", "auto", lambda line: None, {}, groups=predicting_groups)
    seen = record(found, 1, 0)[0]["obs"]
    screen = gym.make("PixelCatch-v1").observation_space
    for path in films:
        with Image.open(path) as film:
            frames = [np.array(each.convert("RGB")) for each in ImageSequence.Iterator(film)]
        side = frames[0].shape[1] // 2
        scale = side // screen.shape[1]
        real = [frame[:side:scale, :side:scale] for frame in frames]
        dreamed = [frame[:side:scale, side::scale] for frame in frames]
        assert {part.shape for part in (*real, *dreamed)} == {screen.shape}
        begin = int(path.stem.rpartition("-")[2]) - 5  # the first of 5 known rows
        # A frame of a film has 256 colours, so that a few pixels are off by a little.
        error = np.abs(np.array(real, int) - seen[begin : begin + len(real)])
        assert np.quantile(error, 0.999) <= 8 and error.max() <= 40
        np.testing.assert_array_equal(dreamed[:5], real[:5])
        assert any((part != row).any() for part, row in zip(dreamed, real, strict=True))
        assert dreamed[-1].std() > 0
