"""Tests the training of several seeds: commands, resumed seeds, and records."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.learning import train
from benchmarks.learning.curves import final_by_category, read_curve
from dreamfleet import cli


def test_the_command_is_a_valid_configuration():
    training = train.Training(
        "dreamer-lite", "Pendulum-v1", 2000, 500, 100, settings=("agent.dream_horizon=10",)
    )
    planned = cli.configured([*training.command(3), "--run-dir", "somewhere"])
    config, resumed = planned.config, planned.resumed
    assert (config.env, config.seed, config.steps, config.num_actors) == ("Pendulum-v1", 3, 2000, 1)
    assert config.local and resumed is None
    assert (config.train.eval_every, config.train.eval_episodes) == (500, 100)
    assert config.agent_options["dream_horizon"] == 10


def test_evaluations_depend_on_the_environment_unless_they_are_set():
    given = ["--agent", "gated-rainbow", "--env", "NumberGame-v1", "--envs-per-actor", "64"]
    parser = train.parser(None, 3, 1000, "dreamer-lite", "CartPole-v1")
    training = train.training(parser.parse_args(given))
    config = cli.configured(training.command(0)).config
    assert (config.agent, config.env) == ("gated-rainbow", "NumberGame-v1")
    assert config.envs_per_actor == 64
    assert (config.train.eval_every, config.train.eval_episodes) == (20_000, 5_000)
    given += ["--eval-every", "7", "--eval-episodes", "3"]
    training = train.training(parser.parse_args(given))
    assert (training.eval_every, training.eval_episodes) == (7, 3)


def test_a_number_of_actors_means_ray():
    parser = train.parser(None, 3, 1000, "dreamer-lite", "CartPole-v1")
    training = train.training(parser.parse_args(["--num-actors", "16"]))
    config = cli.configured(training.command(0)).config
    assert config.num_actors == 16 and not config.local


@pytest.mark.slow
def test_a_seed_is_trained_evaluated_and_recorded_once(tmp_path):
    training = train.Training(
        "gated-rainbow", "NumberGame-v1", 60, 30, 8, 4, settings=("agent.warmup=1000",)
    )
    (seed_run,) = train.seed_runs(training, "tiny", 1, tmp_path / "records")
    seed_run = replace(seed_run, run=tmp_path / "runs" / "seed-0")
    seed_run.finish()
    curve = read_curve(seed_run.record)
    assert curve.steps[0] >= 30 and curve.agent == "gated-rainbow"
    assert curve.final["episodes"] == 8 and curve.final_return == curve.final["return_mean"]
    assert set(final_by_category([curve])) >= {"all"}
    written = seed_run.record.stat().st_mtime_ns
    seed_run.finish()
    assert seed_run.record.stat().st_mtime_ns == written


def test_a_run_folder_of_another_command_is_refused(tmp_path):
    run = tmp_path / "seed-0"
    run.mkdir()
    made = train.Training("dreamer-lite", "CartPole-v1", 100, 50, 8).command(0)
    run.with_suffix(".command").write_text(train.without_steps(made))
    longer = train.Training("dreamer-lite", "CartPole-v1", 200, 50, 8).command(0)
    assert train.without_steps(longer) == train.without_steps(made)
    other = train.Training(
        "dreamer-lite", "CartPole-v1", 100, 50, 8, settings=("agent.lr_critic=1",)
    )
    with pytest.raises(
        SystemExit, match=r"seed-0 was made by .* the command now is .*agent.lr_critic=1"
    ):
        train.train(other.command(0), run, 100)


def test_actions_of_sb3_are_scaled_as_ours():
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
