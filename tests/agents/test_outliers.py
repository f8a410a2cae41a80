"""Tests that agents learn although half a percent of the steps has faulty numbers."""

from __future__ import annotations

import json

import pytest

from dreamfleet import cli


@pytest.mark.slow
@pytest.mark.parametrize(
    "agent", ["gated-rainbow", pytest.param("dreamer-lite", marks=pytest.mark.costly)]
)
def test_cartpole_is_learned_with_faulty_sensors(tmp_path, agent):
    """The return must exceed 60. A random policy reaches 22, an agent with ruined statistics 9."""
    run = ["--run-dir", str(tmp_path / "run"), "--local", "--num-actors", "1", "--seed", "1"]
    env = ["--env", "tests.envs.poisoned:PoisonedCartPole-v0", "--preset", "CartPole-v1"]
    settings = ("train.eval_every=500", "train.eval_episodes=20", "eval_env.share=0")
    flags = [word for setting in settings for word in ("--set", setting)]
    assert cli.main(["--agent", agent, *env, *run, "--steps", "1000", *flags]) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    scores = [line["return_mean"] for line in lines if line["kind"] == "eval"]
    assert max(scores) > 60, scores
