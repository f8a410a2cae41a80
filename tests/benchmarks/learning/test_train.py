"""What the scripts ask of launch.py and of others is understood there."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.learning import train
from benchmarks.learning.curves import by_kind, read_curve
from dreamfleet import cli


def test_launch_understands_the_command():
    of = train.Training(
        "dreamer-lite", "Pendulum-v1", 2000, 500, 100, settings=("agent.dream_horizon=10",)
    )
    planned = cli.configured([*of.command(3), "--run-dir", "somewhere"])
    config, resumed = planned.config, planned.resumed
    assert (config.env, config.seed, config.steps, config.num_actors) == ("Pendulum-v1", 3, 2000, 1)
    assert config.local and resumed is None
    assert (config.train.eval_every, config.train.eval_episodes) == (500, 100)
    assert config.agent_options["dream_horizon"] == 10


def test_another_agent_has_its_own_looks_and_environments():
    given = ["--agent", "gated-rainbow", "--env", "NumberGame-v1", "--envs-per-actor", "64"]
    parser = train.parser(None, 3, 1000, "dreamer-lite", "CartPole-v1")
    of = train.training(parser.parse_args(given))
    config = cli.configured(of.command(0)).config
    assert (config.agent, config.env, config.envs_per_actor) == (of.agent, of.env, 64)
    assert (config.train.eval_every, config.train.eval_episodes) == (20_000, 5_000)
    of = train.training(parser.parse_args([*given, "--eval-every", "7", "--eval-episodes", "3"]))
    assert (of.every, of.episodes) == (7, 3)


def test_many_actors_are_on_ray():
    parser = train.parser(None, 3, 1000, "dreamer-lite", "CartPole-v1")
    of = train.training(parser.parse_args(["--num-actors", "16"]))
    config = cli.configured(of.command(0)).config
    assert config.num_actors == 16 and not config.local


@pytest.mark.slow
def test_a_seed_is_trained_scored_kept_and_then_left_alone(tmp_path):
    of = train.Training(
        "gated-rainbow", "NumberGame-v1", 60, 30, 8, 4, settings=("agent.warmup=1000",)
    )
    (job,) = train.seeds(of, "tiny", 1, tmp_path / "kept")
    job = replace(job, run=tmp_path / "runs" / "seed-0")
    job.finish()
    curve = read_curve(job.kept)
    assert curve.steps[0] >= 30 and curve.agent == "gated-rainbow"
    assert curve.final["episodes"] == 8 and curve.final_return == curve.final["return_mean"]
    assert set(by_kind([curve])) >= {"all"}
    kept = job.kept.stat().st_mtime_ns
    job.finish()
    assert job.kept.stat().st_mtime_ns == kept


def test_a_seed_made_otherwise_is_not_taken_for_the_one_asked_for(tmp_path):
    run = tmp_path / "seed-0"
    run.mkdir()
    made = train.Training("dreamer-lite", "CartPole-v1", 100, 50, 8).command(0)
    run.with_suffix(".command").write_text(train.but_steps(made))
    longer = train.Training("dreamer-lite", "CartPole-v1", 200, 50, 8).command(0)
    assert train.but_steps(longer) == train.but_steps(made)
    other = train.Training(
        "dreamer-lite", "CartPole-v1", 100, 50, 8, settings=("agent.lr_critic=1",)
    )
    with pytest.raises(
        SystemExit, match=r"seed-0 was made with .*agent.lr_critic=1.* is asked for"
    ):
        train.train(other.command(0), run, 100)


def test_a_peers_actions_become_ours():
    pytest.importorskip("stable_baselines3")
    from gymnasium.spaces import Box

    from benchmarks.learning.sb3 import Greedy

    class Model:
        action_space = Box(-2.0, 4.0, (1,), np.float32)

        def predict(self, obs, deterministic):
            assert deterministic
            return obs[:, :1], None

    obs = np.array([[-2.0, 9.0], [1.0, 9.0], [4.0, 9.0]], np.float32)
    action, _, _ = Greedy(Model()).act({"obs": obs}, None, explore=False)
    assert action.tolist() == [[-1.0], [0.0], [1.0]]
