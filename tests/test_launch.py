from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dreamfleet import cli
from dreamfleet.core import checkpoint
from dreamfleet.core.errors import WorkerFailed
from dreamfleet.replay_server import budget
from dreamfleet.runtime.run_folder import RunFolder, read_config
from tests.envs import own
from tests.runtime.runs import save_start

ROOT = Path(__file__).parent.parent


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Returns a list of the runs that were started, in a temporary working folder.

    Training itself is replaced by a function that only records its arguments.
    """
    runs = []

    def wiring(place):
        def train(config, folder, state, display):
            runs.append(SimpleNamespace(place=place, config=config, folder=folder, state=state))
            return 0

        return SimpleNamespace(train=train)

    for place in ("local", "cluster"):
        monkeypatch.setitem(sys.modules, f"dreamfleet.runtime.{place}", wiring(place))
    monkeypatch.chdir(tmp_path)
    return runs


@pytest.fixture
def run(started, tmp_path):
    """The folder of a CartPole run that stopped at step 500."""
    pytest.importorskip("torch")  # takes its time, once
    assert cli.main(["--run-dir", "first", "--seed", "5", "--set", "train.chunk=8"]) == 0
    started.clear()
    path = tmp_path / "first"
    save_start(path, 500)
    return path


def refused(args: list[str], capsys) -> str:
    begun = time.perf_counter()
    assert cli.main(args) == 2
    took = time.perf_counter() - begun
    printed = capsys.readouterr()
    assert printed.out == ""
    *before, line = printed.err.splitlines()
    assert line.startswith("error: ")
    # A mistake that needs the environment, the agent or the checkpoint is found after the line
    # that says what is being started.
    assert len(before) <= 1 and all(it.startswith(("starting ", "resuming ")) for it in before)
    assert took < 2
    return line


def test_the_first_line_says_what_is_started(started, run, capsys):
    assert cli.main(["--num-actors", "16", "--steps", "300"]) == 0
    line = "starting dreamer-lite on CartPole-v1: 300 steps, 16 actors and 1 dreamer on Ray"
    assert capsys.readouterr().err.startswith(f"{line}\n")
    assert cli.main(["--resume", str(run), "--local"]) == 0
    assert capsys.readouterr().err.startswith(f"resuming {run}: dreamer-lite on CartPole-v1: ")


def test_train_is_what_happens_when_no_command_is_named(started):
    assert cli.main(["--num-actors", "16"]) == 0
    assert cli.main(["train", "--local"]) == 0
    assert [run.place for run in started] == ["cluster", "local"]
    assert started[0].config.num_actors == 16


def test_flags_win_over_the_preset_and_set_over_flags(started):
    assert cli.main(["--local"]) == 0
    assert cli.main(["--local", "--steps", "77", "--set", "train.chunk=3"]) == 0
    preset, given = started
    assert preset.config.steps == 5000
    assert given.config.steps == 77
    assert given.config.train.chunk == 3


def test_a_preset_of_another_env_can_be_named(started):
    assert cli.main(["--local", "--env", "Acrobot-v1", "--preset", "Pendulum-v1"]) == 0
    assert started[0].config.steps == 3000


def test_the_folder_is_written_before_the_first_step(started):
    assert cli.main(["--local", "--set", "train.env_timeout_s=5"]) == 0
    folder = started[0].folder
    assert read_config(folder.path) == started[0].config
    assert set(json.loads((folder.path / "versions.json").read_text())) >= {"python", "numpy"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--num-actor", "3"], "unknown flag --num-actor. Nearest: --num-actors."),
        (["--nolocal"], "unknown flag --nolocal. Nearest: --no-local."),
        (["trian"], "unknown command 'trian'. Nearest: train."),
        (["--steps=3", "more"], "unknown argument more"),
        (["--num-actors", "-1"], "--num-actors must be from 1 to 1024; found -1"),
        (["--num-actors", "abc"], "--num-actors: must be a whole number; found 'abc'"),
        (["--num-actors"], "Missing value for argument '--num-actors'"),
        (["--agent", "dreamerlite"], "unknown agent 'dreamerlite'. Nearest: dreamer-lite"),
        (["--env", "CartPol-v1"], "Nearest: CartPole-v1"),
        (["--preset", "Pendulum"], "has no preset 'Pendulum'. Nearest: Pendulum-v1"),
        (["--set", "train.chnk=3"], "unknown setting train.chnk. Nearest: train.chunk"),
        (["--set", "train.chunk=x"], "train.chunk must be a whole number; found 'x'"),
        (["--set", "train.chunk=0"], "train.chunk must be from 1 to 4096; found 0"),
        (["--set", "train.chunk"], "--set takes KEY=VALUE; found 'train.chunk'"),
        (["--set", "train.chunk=["], "is not a YAML value"),
        (["--set", "steps=3"], "for this there is --steps"),
        (["--device", "tpu"], "--device must be auto, cpu or cuda; found 'tpu'"),
        (["--address", "localhost"], "--address must be HOST:PORT or auto; found 'localhost'"),
        (["--resume", "nowhere"], "no run at nowhere"),
        (["--resume", "latest"], "no run under"),
        (["eval", "nowhere"], "no run at nowhere"),
        (["eval"], "RUN"),
        (["eval", "x", "--episodes", "0"], "--episodes must be from 1 to 1000000; found 0"),
        (["dream", "nowhere", "--out", "x"], "no run at nowhere"),
        (["dream", "nowhere"], "--out"),
        (["list", "agnts"], "invalid choice 'agnts'"),
        (["bench", "reply"], "invalid choice 'reply'"),
        (["bench", "replay", "--rows", "cycl"], "unknown row 'cycl'. Nearest: cycle"),
        (["bench", "replay", "--rounds", "0"], "--rounds must be at least 1; found 0"),
        (["bench", "replay", "--json", "no/x.json"], "there is no folder no"),
        (["bench", "replay", "--reverb-python", "no"], "--reverb-python no: No such file"),
        (["bench", "replay", "--reverb-python", sys.executable], "no Reverb with TensorFlow"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(
    started, tmp_path, capsys, args, said
):
    assert said in refused(args, capsys)
    assert started == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["agent.dream_horzon=3"],
            "unknown setting agent.dream_horzon. Nearest: agent.dream_horizon",
        ),
        (["agent.dream_share=2"], "agent.dream_share must be from 0 to 1"),
        (["agent.lr_policy=-1"], "agent.lr_policy must be at least 0; found -1"),
        (["agent.dream_horizon=-3"], "agent.dream_horizon must be from 1 to 1000; found -3"),
        (["agent.members=0"], "agent.members must be at least 1; found 0"),
        (["agent.capacity=0"], "agent.capacity must be at least 1 row, found 0"),
        (["agent.capacity=500"], "raise agent.capacity to store 600 or more, found 500"),
        (
            ["agent.capacity=1e11"],
            "of memory are free: lower agent.capacity or set train.replay_gb",
        ),
        (["train.replay_gb=1e-6"], "raise train.replay_gb to store 600 or more, found 18"),
        (["agent.capacity=0", "train.replay_gb=1"], "agent.capacity must be at least 1 row"),
        (["agent.capacity=-5", "train.replay_gb=1"], "agent.capacity must be at least 1 row"),
        (["agent.warmup=200000"], "raise agent.capacity to store as many rows, found 100000"),
    ],
)
@pytest.mark.parametrize("flags", [["--num-actors", "2"], ["--local"]], ids=["ray", "local"])
def test_settings_that_the_agent_or_the_replay_refuses_are_one_line_and_exit_code_2(
    started, tmp_path, capsys, flags, options, said
):
    pytest.importorskip("torch")  # takes its time, once

    assert said in refused([*flags, *(f"--set={option}" for option in options)], capsys)
    assert started == []
    assert list(tmp_path.iterdir()) == []


WALK = """
import gymnasium as gym
import numpy as np

class Walk(gym.Env):
    def __init__(self, size, fail="", wind=0.0, goal=None):
        if fail == "init":
            raise ValueError("no such maze")
        self.size, self.fail = size, fail
        self.observation_space = gym.spaces.Box(0, 1, (size,))
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        if self.fail == "reset":
            raise OSError("no level")
        return np.zeros(self.size, np.float32), {}

    def step(self, action):
        paid = None if self.fail == "reward" else 1.0
        return np.zeros(self.size, np.float32), paid, True, False, {}

gym.registry.pop("Walk-v0", None)
gym.register("Walk-v0", Walk)
"""


@pytest.fixture
def walk(started, tmp_path, monkeypatch):
    """Returns arguments of `launch.py` that select an environment in a module of the user.

    The module `walk` lies in the working folder.
    """
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "walk", raising=False)
    (tmp_path / "walk.py").write_text(WALK)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return ["--env", "walk:Walk-v0", "--local"]


def options(*given: str) -> list[str]:
    return [f"--set={option}" for option in given]


@pytest.mark.parametrize("flags", [[], ["--run-dir", "mine"]], ids=["dated", "named"])
def test_an_environment_that_changes_the_working_folder_does_not_move_the_run(
    started, tmp_path, flags
):
    def moving(env, t):
        os.chdir("/")
        return np.zeros(2)

    name = own.register("Moves-v0", obs=moving)
    assert cli.main(["--local", "--env", name, *flags]) == 0
    path = started[0].folder.path
    assert path.is_absolute() and path.is_relative_to(tmp_path)


def test_arguments_of_the_environment_are_part_of_the_run(started, walk):
    given = options("env.size=3", "env.wind=1e-3", "env.goal={at: [1, 2]}")
    assert cli.main([*walk, *given, "--set=eval_env.wind=0"]) == 0
    config = started[0].config
    assert config.env_options == {"size": 3, "wind": 0.001, "goal": {"at": [1, 2]}}
    assert config.evaluated_options == {"size": 3, "wind": 0, "goal": {"at": [1, 2]}}
    assert read_config(started[0].folder.path) == config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "missing 1 required positional argument: 'size'. Give what is missing: --set env."),
        (["env.size=3", "env.sise=4"], "got an unexpected keyword argument 'sise'"),
        (["env.size=3", "env.fail=init"], "ValueError: no such maze"),
        (["env.size=big"], "could not be built with size='big': "),
        (["env.size=3", "env.fail=reset"], "OSError: no level"),
        (["env.size=3", "env.fail=reward"], "None as its reward, which is no number"),
        (["env.size=3", "eval_env.size=4"], "have observations float32 (4,) and actions 2 choices"),
        (["env.size=3", "eval_env.fail=init"], "ValueError: no such maze"),
        (["env.size=3", "env.reward_floor=low"], "env.reward_floor must be a number or null"),
        (["env.size=3", "eval_env.reward_floor=1"], "eval_env.reward_floor is not possible"),
        (["env.=3"], "--set takes settings of train.…, agent.…, env.…, eval_env.…; found 'env.'"),
    ],
)
def test_an_environment_that_cannot_be_played_is_one_line_and_exit_code_2(
    started, walk, tmp_path, capsys, given, said
):
    pytest.importorskip("torch")
    assert said in refused([*walk, "--run-dir=run", *options(*given)], capsys)
    assert started == [] and [path.name for path in tmp_path.iterdir()] == ["walk.py"]


def test_a_batched_environment_refuses_a_reward_floor(started, tmp_path, capsys):
    given = ["--env=NumberGame-v1", "--agent=gated-rainbow", "--set=env.reward_floor=-1"]
    assert "is stepped as a batch, which takes no reward_floor" in refused(given, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_the_agent_cannot_see_is_refused_before_a_folder_is_made(
    started, walk, tmp_path, capsys
):
    (tmp_path / "walk.py").write_text(
        WALK.replace("Box(0, 1, (size,))", "Box(0, 255, (7, 7, 3), np.uint8)").replace(
            "np.zeros(self.size, np.float32)", "np.zeros((7, 7, 3), np.uint8)"
        )
    )
    for _ in range(2):
        given = [*walk, "--agent=gated-rainbow", "--run-dir=run", "--set=env.size=3"]
        assert "found uint8 7 × 7" in refused(given, capsys)
    assert started == [] and not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_the_spaces_of_its_environment(started, walk, tmp_path, capsys):
    assert cli.main([*walk, "--run-dir=run", *options("env.size=3")]) == 0
    run = tmp_path / "run"
    save_start(run, 5)
    capsys.readouterr()
    resumed = ["--resume", str(run)]
    assert "the run has observations float32 (3,)" in refused(
        [*resumed, "--set=env.size=4"], capsys
    )
    assert cli.main([*resumed, "--set=env.wind=2"]) == 0
    assert started[-1].config.env_options == {"size": 3, "wind": 2}


def test_the_memory_of_all_shards_is_checked_together(started, monkeypatch, capsys):
    """Each of the four shards alone would fit into the available memory."""
    monkeypatch.setattr(budget, "available_memory", lambda: 3e6)
    given = ["--num-actors", "4", "--set", "train.replay_shards=4", "--set"]
    assert "200,000 rows of 'real' take" in refused([*given, "agent.capacity=2e5"], capsys)
    assert cli.main([*given, "agent.capacity=2e4"]) == 0


def test_an_address_where_nobody_answers_is_refused(started, capsys):
    with socket.socket() as held:  # bound, but not listening
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        assert f"{address}: nobody answers" in refused(["--address", address], capsys)


def test_an_address_that_answers_is_accepted(started):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert cli.main(["--address", f"127.0.0.1:{server.getsockname()[1]}"]) == 0
    assert started[0].place == "cluster"


def test_cuda_is_refused_where_torch_cannot_use_it(started, capsys):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert "Use --device cpu, or auto." in refused(["--device", "cuda"], capsys)


def test_a_run_folder_that_is_not_empty_is_refused_and_unchanged(started, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    assert "exists and is not empty" in refused(["--run-dir", "taken"], capsys)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes"]


def test_an_env_the_agent_cannot_act_in_is_refused(started, capsys):
    pytest.importorskip("ale_py")
    assert "image observations" in refused(["--env", "ALE/Pong-v5"], capsys)


def test_resume_goes_on_with_the_saved_config_and_state(started, run):
    assert cli.main(["--resume", str(run), "--steps", "9000", "--set", "train.log_every=7"]) == 0
    (again,) = started
    assert again.state["session"]["env_steps"] == 500
    assert (again.config.seed, again.config.steps, again.config.train.chunk) == (5, 9000, 8)
    assert read_config(run) == again.config
    assert again.config.train.log_every == 7


def test_resume_latest_takes_the_run_last_written_to(started):
    for seed in ("1", "2"):
        assert cli.main(["--local", "--seed", seed]) == 0
    first, second = (it.folder for it in started)
    for folder in (first, second):
        save_start(folder.path, 3)
    time.sleep(0.01)
    first.metrics.write_text("")
    started.clear()
    assert cli.main(["--resume", "latest"]) == 0
    assert started[0].folder.path == first.path


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--seed", "6"], "--seed 6 contradicts the run to resume"),
        (["--env", "Pendulum-v1"], "has CartPole-v1"),
        (["--run-dir", "other"], "--run-dir other contradicts"),
        (["--set", "agent.dream_horizon=3"], "cannot change in a resumed run"),
        (["--steps", "500"], "has taken 500 of 500 steps"),
    ],
)
def test_resume_refuses_changes_that_make_it_another_run(started, run, capsys, args, said):
    before = (run / "config.yaml").read_bytes()
    assert said in refused(["--resume", str(run), *args], capsys)
    assert (run / "config.yaml").read_bytes() == before
    assert started == []


def test_resume_without_a_checkpoint_is_refused(started, run, capsys):
    for path in (run / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
        (path / "arrays.npz").unlink()
        path.rmdir()
    assert "nothing to resume" in refused(["--resume", str(run)], capsys)


def test_a_checkpoint_of_another_agent_is_refused(started, run, capsys):
    for path in (run / "checkpoints").iterdir():
        shutil.rmtree(path)
    checkpoint.save(run / "checkpoints", 500, {"n": 1}, agent="other", env="CartPole-v1")
    assert cli.main(["--resume", str(run)]) == 2
    assert "is of agent 'other', expected 'dreamer-lite'" in capsys.readouterr().err
    assert started == []


def test_a_live_run_cannot_be_resumed(started, run, capsys):
    with RunFolder.reopen(run, read_config(run)):
        assert "is live: process" in refused(["--resume", str(run)], capsys)
    assert cli.main(["--resume", str(run)]) == 0


def test_list_names_agents_presets_and_envs(capsys):
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert "dreamer-lite" in said
    assert "CartPole-v1" in said


def test_list_metrics_prints_every_metric(capsys):
    assert cli.main(["list", "metrics"]) == 0
    text = capsys.readouterr().out
    assert "\nDreams\n  dream/share [fraction]: Fraction of" in text


def test_a_list_is_wrapped_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for what in ("settings", "metrics"):
        assert cli.main(["list", what]) == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 100
    assert "\n  dream/share [fraction]\n      Fraction of" in text


def test_a_closed_pipe_ends_list_without_an_error():
    with subprocess.Popen(
        [sys.executable, "launch.py", "list", "envs"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as listing:
        listing.stdout.close()  # before a line of it is there
        assert listing.stderr.read() == b""
        assert listing.wait(60) == 0


def test_help_opens_with_examples_and_imports_nothing_heavy():
    code = (
        "import sys; from dreamfleet import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert cli.main(['--stepz', '3']) == 2\n"
        "heavy = {'torch', 'ray', 'gymnasium', 'rich', 'tensorboardX', 'benchmarks'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("python launch.py") >= 3
    assert done.stdout.index("examples:") < done.stdout.index("--agent")


def test_ctrl_c_before_the_start_exits_130(monkeypatch, started):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "dreamfleet.runtime.local", SimpleNamespace(train=interrupted))
    assert cli.main(["--local"]) == 130


def test_a_part_that_broke_is_printed_unchanged_with_exit_code_1(started, monkeypatch, capsys):
    def train(config, folder, state, display):
        raise WorkerFailed("Traceback (most recent call last):\nOSError: no\n\nlearner broke")

    monkeypatch.setitem(sys.modules, "dreamfleet.runtime.local", SimpleNamespace(train=train))
    assert cli.main(["--local"]) == 1
    assert capsys.readouterr().err.endswith("OSError: no\n\nlearner broke\n")
