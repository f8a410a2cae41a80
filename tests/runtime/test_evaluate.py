from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreamfleet import agents, cli
from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError
from dreamfleet.envs.vector import GymVector
from dreamfleet.runtime.evaluate import evaluate, player
from dreamfleet.runtime.run_folder import RunFolder, read_config
from tests.envs import own
from tests.fakes import FakeAgent
from tests.runtime.runs import save_start

ROOT = Path(__file__).parents[2]


class Pusher(FakeAgent):
    """An agent for CartPole that balances the pole only with an odd number of policy updates.

    With an odd number of updates it pushes left and right in turn, with an even number always
    right.
    """

    def act(self, rows, state, explore):
        action, state, extras = super().act(rows, state, explore)
        return action | (self.count["policy"] % 2 == 0), state, extras


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a CartPole run with one checkpoint, whose policy had 41 updates."""
    entry = agents.AgentEntry(f"{Pusher.__module__}:Pusher", ("discrete",), ("vector",))
    monkeypatch.setitem(agents.REGISTRY, "pusher", entry)
    config = RunConfig(agent="pusher", run_dir=str(tmp_path / "run"))
    with RunFolder.create(config) as folder:
        save(folder, 700, policy=41)
    return folder


def save(folder: RunFolder, env_steps: int, policy: int) -> None:
    agent = FakeAgent()
    agent.count["policy"] = policy
    state = {"agent": {group: agent.state(group) for group in ("policy", "world")}}
    env = read_config(folder.path).env
    checkpoint.save(folder.checkpoints, env_steps, state, agent="pusher", env=env)


def test_the_newest_checkpoint_is_played(run):
    found = evaluate(run.path, episodes=12, seed=3, device="cpu")
    assert found["episodes"] == 12
    assert found["env_steps"] == 700
    assert (found["agent"], found["env"], found["seed"]) == ("pusher", "CartPole-v1", 3)
    assert found["return_mean"] == found["length_mean"] > 15  # CartPole pays 1 a step
    assert found["return_min"] <= found["return_mean"]
    save(run, 900, policy=42)
    found = evaluate(run.path, episodes=12, seed=3, device="cpu")
    assert found["env_steps"] == 900
    assert 8 <= found["return_min"] <= found["return_mean"] < 11  # the pole falls at once


def test_a_seed_decides_the_episodes(run):
    one, same, other = (evaluate(run.path, 12, seed, "cpu") for seed in (3, 3, 4))
    assert one == same
    assert one["return_mean"] != other["return_mean"]


def test_json_is_one_object_and_nothing_else(run, capsys):
    assert cli.main(["eval", str(run.path), "--episodes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = {"return_mean", "return_std", "return_min", "episodes", "length_mean"}
    assert figures <= found.keys()
    assert np.isfinite([found[name] for name in figures]).all()


@pytest.fixture
def game(tmp_path, monkeypatch):
    """The folder of a NumberGame run whose policy never draws a number."""
    entry = agents.AgentEntry(f"{Pusher.__module__}:Pusher", ("discrete",), ("vector",))
    monkeypatch.setitem(agents.REGISTRY, "pusher", entry)
    config = RunConfig(agent="pusher", env="NumberGame-v1", run_dir=str(tmp_path / "game"))
    with RunFolder.create(config) as folder:
        save(folder, 700, policy=42)
    return folder.path


def test_evaluations_report_each_category_of_episodes(game, capsys):
    assert cli.main(["eval", str(game), "--episodes", "1200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = [f"tier_{kind}" for kind in range(4)]
    episodes = [found[f"{kind}/episodes"] for kind in kinds]
    assert sum(episodes) == 1200 and min(episodes) > 200  # a quarter each
    for name in ("return_mean", "won_mean", "length_mean"):
        by_kind = [found[f"{kind}/{name}"] for kind in kinds]
        assert np.average(by_kind, weights=episodes) == pytest.approx(found[name])


def test_each_category_of_episodes_is_printed_on_a_line(game, capsys):
    assert cli.main(["eval", str(game), "--episodes", "40"]) == 0
    first, *kinds = capsys.readouterr().out.splitlines()
    assert ", won 0" in first
    assert [line.split(":")[0] for line in kinds] == [f"  tier_{kind}" for kind in range(4)]


def test_without_json_the_result_is_one_sentence(run, capsys):
    assert cli.main(["eval", str(run.path), "--episodes", "2"]) == 0
    assert "pusher on CartPole-v1 after 700 steps: return" in capsys.readouterr().out


@pytest.fixture
def films(tmp_path) -> Path:
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    return tmp_path / "films"


def test_films_change_nothing_and_are_one_of_every_tenth_episode(run, films):
    plain = evaluate(run.path, 12, 3, "cpu")
    filmed = evaluate(run.path, 12, 3, "cpu", video=films)
    names = [f"CartPole-v1_episode-{episode}.mp4" for episode in (1, 11)]
    assert filmed.pop("films") == [str(films / name) for name in names]
    assert filmed == plain
    assert sorted(path.name for path in films.iterdir()) == sorted(names)


def test_an_evaluation_says_where_its_films_are_and_libraries_say_nothing(run, films, capfd):
    assert cli.main(["eval", str(run.path), "--episodes=1", f"--video={films}"]) == 0
    printed = capfd.readouterr()
    assert printed.out.splitlines()[-1] == f"1 film in {films}: CartPole-v1_episode-1.mp4"
    assert [line.partition(" ")[0] for line in printed.err.splitlines()] == ["loading", "playing"]


def test_an_episode_that_was_cut_short_is_filmed_and_named_so(run, films):
    found = evaluate(run.path, 1, 3, "cpu", video=films, max_steps=5)
    assert [Path(film).name for film in found["films"]] == ["CartPole-v1_episode-1_cut-short.mp4"]


def test_an_evaluation_that_breaks_leaves_no_film_of_a_part(run, films, monkeypatch):
    def broken(self, action):
        raise OSError("no")

    monkeypatch.setattr("gymnasium.envs.classic_control.CartPoleEnv.step", broken)
    with pytest.raises(OSError, match="no"):
        evaluate(run.path, 1, 3, "cpu", video=films)
    assert list(films.iterdir()) == []


def test_a_run_without_a_checkpoint_says_so(run):
    for path in run.checkpoints.iterdir():
        path.rename(run.path / path.name)
    with pytest.raises(UserError, match="has no checkpoint yet") as refused:
        evaluate(run.path, 1, 0, "cpu")
    assert "--resume" not in str(refused.value)  # there is nothing to resume


def play_in(env: str, run: RunFolder, monkeypatch) -> None:
    """Makes a saved run pretend that it was trained in the environment `env`.

    The policy stays as it is.
    """
    config = replace(read_config(run.path), env=env)
    monkeypatch.setattr("dreamfleet.runtime.evaluate.read_config", lambda path: config)
    state = checkpoint.load(next(run.checkpoints.iterdir()))
    checkpoint.save(run.checkpoints, 900, state, agent="pusher", env=env)


def test_output_of_an_environment_does_not_mix_with_the_json_object(run, monkeypatch, capfd):
    def obs(env, t):
        print("talks", flush=True)  # noqa: T201
        os.system("echo shouts")
        ctypes.CDLL(None).puts(b"mutters")  # stays in the buffer of C for a while
        return np.zeros(2)

    play_in(own.register("Talks-v0", obs=obs), run, monkeypatch)
    assert cli.main(["eval", str(run.path), "--episodes=1", "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["return_mean"] == 5.0
    assert all(word in said.err for word in ("talks", "shouts", "mutters"))


def test_a_seed_decides_the_episodes_of_an_environment_that_uses_all_generators(run, monkeypatch):
    play_in(own.drawing("Draws-v0"), run, monkeypatch)
    assert evaluate(run.path, 3, 5, "cpu") == evaluate(run.path, 3, 5, "cpu")


def keep_best(folder: RunFolder, env_steps: int, policy: int) -> Path:
    state = {"score": 9.0, "weights": {"policy": {"count": np.array(policy)}}}
    return checkpoint.save(folder.best, env_steps, state, agent="pusher", env="CartPole-v1", kept=1)


def test_the_checkpoint_that_is_played_can_be_chosen(run, capsys):
    (oldest,) = run.checkpoints.iterdir()
    save(run, 900, policy=42)
    best = keep_best(run, 800, policy=44)
    for choice, steps, weights in (("latest", 900, 42), ("best", 800, 44), (str(oldest), 700, 41)):
        found = player(run.path, choice)
        assert (found.env_steps, found.agent.count["policy"]) == (steps, weights)
        assert found.blueprint.config == read_config(run.path)
        assert (
            cli.main(["eval", str(run.path), "--episodes=2", "--json", f"--checkpoint={choice}"])
            == 0
        )
        told = json.loads(capsys.readouterr().out)
        assert told["checkpoint"] == str(found.checkpoint)
        assert told["env_steps"] == steps
    assert player(run.path, "best").checkpoint == best
    assert player(run.path, str(best)).agent.count["policy"] == 44


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("best", "has no best checkpoint: it made no evaluation. Use --checkpoint latest."),
        ("newest", "no checkpoint at newest: found nothing"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_a_mistake(run, capsys, choice, said):
    assert cli.main(["eval", str(run.path), "--checkpoint", choice]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_checkpoint_is_skipped(run, caplog):
    save(run, 900, policy=42)
    (*_, newest) = sorted(run.checkpoints.iterdir())
    (newest / "manifest.json").write_text("{}")
    assert player(run.path).env_steps == 700
    assert newest.name in caplog.text
    with pytest.raises(UserError, match="is not ours"):
        player(run.path, str(newest))


@pytest.mark.parametrize("weights", [{}, {"world": {}}, {"policy": {}}, {"policy": 3}, 3])
def test_weights_that_do_not_fit_are_named(run, weights):
    checkpoint.save(run.best, 5, {"weights": weights}, agent="pusher", env="CartPole-v1")
    with pytest.raises(UserError, match=r"ckpt-000000000005\.000 cannot be used: weight group"):
        player(run.path, "best")


def test_the_result_names_the_policy_that_was_played_although_the_run_saved_a_newer_one(
    run, monkeypatch
):
    plain = GymVector.to_play

    def save_meanwhile(*args, **kwargs):
        for env_steps in (900, 1000, 1100):
            save(run, env_steps, policy=42)
        return plain(*args, **kwargs)

    monkeypatch.setattr(GymVector, "to_play", save_meanwhile)
    found = evaluate(run.path, 2, 3, "cpu")
    assert found["env_steps"] == 700
    assert "ckpt-000000000700" in found["checkpoint"]


def test_episodes_are_truncated_at_the_step_limit_and_counted(run, capsys):
    assert cli.main(["eval", str(run.path), "--episodes", "3", "--max-steps", "5"]) == 0
    assert "over 3 episodes of 5 steps, 3 truncated" in capsys.readouterr().out
    assert evaluate(run.path, 3, 0, "cpu", max_steps=5)["reached_step_limit"] == 3
    assert evaluate(run.path, 3, 0, "cpu")["reached_step_limit"] == 0
    assert cli.main(["eval", str(run.path), "--max-steps", "0"]) == 2


def test_a_run_folder_of_a_stranger_runs_no_code(run, monkeypatch, capsys):
    """The run's config.yaml names an environment whose module lies in the run's folder."""
    canary = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
    (run.path / "payload_of_a_stranger.py").write_text(canary)
    env = "payload_of_a_stranger:CartPole-v1"
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("env: CartPole-v1", f"env: {env}"))
    save(run, 800, policy=41)
    monkeypatch.chdir(run.path)
    for args in (["eval", "."], ["eval", str(run.path)], ["--resume", "."]):
        assert cli.main(args) == 2
        assert "from which no code is imported" in capsys.readouterr().err
    assert not list(run.path.rglob("ran"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_a_signal_stops_eval_at_once(tmp_path, number, code):
    """The signal comes in the middle of an evaluation episode that never ends."""
    pytest.importorskip("torch")
    env = "tests.runtime.broken:Endless-v0"
    path = tmp_path / "run"
    with RunFolder.create(RunConfig(env=env, run_dir=str(path), agent="gated-rainbow")):
        save_start(path, 5)
    command = [sys.executable, "launch.py", "eval", str(path), "--max-steps", "1000000000"]
    around = os.environ | {"STEPPED": str(path / "stepped"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=around) as playing:
        try:
            while not (path / "stepped").exists():
                assert playing.poll() is None
                time.sleep(0.05)
            playing.send_signal(number)
            assert playing.wait(3.0) == code
        finally:
            playing.kill()


def test_an_environment_that_breaks_an_evaluation_is_named_in_one_line(run, capsys, monkeypatch):
    steps = GymVector._step_each

    def broken(self, action):
        obs, reward, *flags = steps(self, action)
        return obs, np.full_like(reward, np.nan), *flags

    monkeypatch.setattr(GymVector, "_step_each", broken)
    assert cli.main(["eval", str(run.path), "--episodes", "1"]) == 1
    said = capsys.readouterr().err
    assert "the evaluation broke: CartPole-v1[0] returned a reward of nan" in said
    assert "Traceback" not in said


def test_a_path_that_is_no_folder_cannot_hold_films(run, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert cli.main(["eval", str(run.path), "--episodes", "1", "--video", str(file)]) == 2
    assert f"cannot film into {file}: File exists" in capsys.readouterr().err


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """The folder of a run in an environment whose episodes have 5 steps, or `length` steps."""
    entry = agents.AgentEntry(f"{Deciding.__module__}:Deciding", ("discrete",), ("vector",))
    monkeypatch.setitem(agents.REGISTRY, "pusher", entry)
    env = "dreamfleet.envs.probe:Count-v0"
    config = RunConfig(agent="pusher", env=env, run_dir=str(tmp_path / "count"))
    with RunFolder.create(config) as folder:
        save(folder, 700, policy=41)
    return folder.path


class Deciding(FakeAgent):
    """An agent whose setting `learn_s` changes only how it acts."""

    act_settings = ("learn_s",)

    def act(self, rows, state, explore):
        assert self.config.learn_s == 0.5
        return super().act(rows, state, explore)


def test_an_evaluation_may_change_the_environment_and_acting(counting, capsys):
    args = ["eval", str(counting), "--episodes=2", "--set=agent.learn_s=0.5"]
    assert cli.main([*args, "--set=env.length=7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["length_mean"] == 7
    assert found["env_options"] == {"length": 7}
    assert found["agent_options"] == {"learn_s": 0.5}
    assert cli.main([*args, "--set=env.length=7"]) == 0
    policy = "pusher (learn_s=0.5) on dreamfleet.envs.probe:Count-v0 (length=7) after 700 steps"
    assert capsys.readouterr().out.startswith(f"{policy}: return")
    assert cli.main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["length_mean"] == 5 and "env_options" not in found


def test_the_arguments_of_the_run_are_reported(run, monkeypatch, capsys):
    config = replace(
        read_config(run.path), env_options={"sutton_barto_reward": True, "reward_floor": -1.0}
    )
    monkeypatch.setattr("dreamfleet.runtime.evaluate.read_config", lambda path: config)
    assert cli.main(["eval", str(run.path), "--episodes=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["env_options"] == {"sutton_barto_reward": True}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("agent.capacity=3", "an evaluation may change settings that concern acting alone"),
        ("agent.capacity=3", "of which pusher has only learn_s"),
        ("train.chunk=3", "train.chunk does not concern an evaluation. --set takes env.NAME"),
        ("eval_env.length=3", "eval_env.length does not concern an evaluation"),
        ("env.reward_floor=-1", "evaluations report the rewards that the environment pays"),
        ("env.lenght=3", "lenght"),
        ("env.length", "--set takes KEY=VALUE; found 'env.length'"),
    ],
)
def test_an_evaluation_changes_nothing_else(counting, capsys, option, said):
    assert cli.main(["eval", str(counting), "--set", option]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and said in line


def test_arguments_that_change_the_spaces_are_refused(run, monkeypatch, capsys):
    play_in("tests.envs.sized:Sized-v0", run, monkeypatch)
    assert cli.main(["eval", str(run.path), "--episodes=1", "--set=env.size=2"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", str(run.path), "--episodes=1", "--set=env.size=3"]) == 2
    said = capsys.readouterr().err
    assert "has observations float32 (3,) and actions 2 choices, but the agent was trained" in said
