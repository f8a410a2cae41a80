"""Tests how a run's folder is created, locked, written and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig, TrainConfig
from dreamfleet.core.errors import UserError
from dreamfleet.runtime.run_folder import (
    FILES,
    FOLDERS,
    RunFolder,
    check_new,
    last_address,
    latest,
    read_config,
    versions,
)

CONFIG = RunConfig(
    env="pkg.mod:My/Env-v0", train=TrainConfig(chunk=3), agent_options={"net.units": (8, 8)}
)


def test_a_default_folder_is_named_after_the_run(tmp_path):
    with RunFolder.create(CONFIG, tmp_path) as folder:
        assert folder.path.parent == tmp_path
        assert folder.path.name.endswith("_dreamer-lite_pkg.mod-My-Env-v0_s0")
        assert folder.config.run_dir == str(folder.path)


def test_two_runs_in_the_same_second_get_two_folders(tmp_path):
    with RunFolder.create(CONFIG, tmp_path) as one, RunFolder.create(CONFIG, tmp_path) as two:
        assert one.path != two.path


def test_a_config_is_read_as_it_was_written(tmp_path):
    with RunFolder.create(replace(CONFIG, run_dir=str(tmp_path / "a" / "b"))) as folder:
        pass
    found = read_config(folder.path)
    assert found.train == CONFIG.train
    assert found.agent_options == {"net.units": [8, 8]}
    assert replace(found, agent_options={}) == replace(folder.config, agent_options={})


def test_versions_of_installed_packages_are_found_without_importing_them():
    code = (
        "import json, sys; from dreamfleet.runtime.run_folder import versions; found = versions()\n"
        "assert not {'torch', 'ray', 'gymnasium'} & set(sys.modules)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found == versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["ray"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: (path.mkdir(), (path / "x").touch()), "exists and is not empty"),
        (lambda path: path.touch(), "is a file"),
    ],
)
def test_a_file_or_a_folder_with_files_is_refused(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        RunFolder.create(RunConfig(run_dir=str(tmp_path / "run")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write in"):
        check_new(tmp_path / "run")


def test_an_empty_folder_is_accepted(tmp_path):
    check_new(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_actor: 3", r"unknown setting num_actor\. Nearest: num_actors\."),
        ("steps: many", "steps must be a whole number; found 'many'"),
        ("train:\n\tchunk: 3", "is not YAML"),
        ("- 1", "holds list"),
        ("", "holds NoneType"),
        ("x: !!python/object/apply:os.system [exit]", "is not YAML"),
    ],
)
def test_the_message_about_an_invalid_config_names_the_file(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.yaml") in str(caught.value)


def test_a_run_in_progress_is_locked_against_other_processes(tmp_path):
    path = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from dreamfleet.core.errors import UserError\n"
        "from dreamfleet.runtime.run_folder import RunFolder, read_config\n"
        "path = Path(sys.argv[1])\n"
        "try: RunFolder.reopen(path, read_config(path))\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with RunFolder.create(RunConfig(run_dir=str(path))):
        held = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"is live: process {os.getpid()} holds it" in held.stdout
    free = subprocess.run(command, capture_output=True, text=True, check=True)
    assert free.stdout == ""


def test_reopening_changes_no_file_before_record(tmp_path):
    with RunFolder.create(RunConfig(run_dir=str(tmp_path / "run"))) as folder:
        pass
    file = folder.path / "config.yaml"
    before = file.read_bytes()
    with RunFolder.reopen(folder.path, RunConfig(steps=77), command="again") as again:
        assert file.read_bytes() == before
        again.record()
    assert read_config(folder.path).steps == 77
    assert file.read_bytes().startswith(before)
    first, second = yaml.safe_load(file.read_text())["history"]
    assert "changed" not in first
    assert second["changed"] == {"steps": 77}
    assert second["command"] == "again"
    assert second["versions"] == versions()


def test_latest_is_the_run_that_was_last_written_to(tmp_path):
    folders = [RunFolder.create(RunConfig(seed=s), tmp_path) for s in range(3)]
    for folder, when in zip(folders, (10, 30, 20), strict=True):
        os.utime(folder.path / "config.yaml", (when, when))
        checkpoint.save(folder.checkpoints, 1, {}, agent="dreamer-lite", env="CartPole-v1")
        folder.close()
    assert latest(tmp_path) == folders[1].path
    folders[2].metrics.touch()
    assert latest(tmp_path) == folders[2].path


def written(path: Path) -> dict[str, Any]:
    return yaml.safe_load((path / "config.yaml").read_text())


def test_the_config_holds_every_option_and_the_command_line(tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path / "run"), agent_options={"lr": 0.1})
    with RunFolder.create(config, command="launch.py train --set agent.lr=0.1") as folder:
        folder.record({"lr": 0.1, "horizon": 15, "net": {"units": (8, 8)}})
    found = written(folder.path)
    assert found["agent_options"] == {"lr": 0.1, "horizon": 15, "net": {"units": [8, 8]}}
    assert found["train"]["eval_steps"] == TrainConfig().eval_steps
    (start,) = found["history"]
    assert start["command"] == "launch.py train --set agent.lr=0.1"
    assert start["versions"] == versions()
    assert read_config(folder.path).agent_options["horizon"] == 15


def test_every_resume_appends_to_the_config_and_changes_no_earlier_text(tmp_path):
    path = tmp_path / "run"
    with RunFolder.create(RunConfig(run_dir=str(path)), command="first") as folder:
        folder.record({"lr": 0.1})
    texts = [folder.path.joinpath("config.yaml").read_text()]
    for steps in (77, 88):
        config = replace(read_config(path), steps=steps, env_options={"size": steps})
        with RunFolder.reopen(path, config, f"to {steps}") as again:
            again.record()  # called before and after the agent is built: one entry
            again.record({"lr": 0.1, "new": 1})
        texts.append(path.joinpath("config.yaml").read_text())
        assert read_config(path).steps == steps
        assert read_config(path).env_options == {"size": steps}
    assert texts[1].startswith(texts[0])
    assert texts[2].startswith(texts[1])
    history = written(path)["history"]
    assert [entry["command"] for entry in history] == ["first", "to 77", "to 88"]
    changed = {"steps": 77, "env_options": {"size": 77}, "agent_options.new": 1}
    assert history[1]["changed"] == changed
    assert history[2]["changed"] == {"steps": 88, "env_options": {"size": 88}}
    assert read_config(path).agent_options == {"lr": 0.1, "new": 1}


# Forty lists; each contains the previous list ten times.
BOMB = "x0: &x0 [1]\n" + "".join(
    f"x{i}: &x{i} [{', '.join(10 * [f'*x{i - 1}'])}]\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("history: 3", "history must be a list"),
        ("history: [3]", "history must be a list"),
        ("history:\n- changed: 3", "must be settings by name"),
        ("history:\n- changed: {chunk: 3}", "unknown setting chunk"),
        ("1: 2", "expected settings by name"),
        ("[" * 3_000, "is not YAML"),
        ("env_options: {a: &a [1], b: *a}", r"has YAML aliases \(\*name\)"),
        (BOMB, "has YAML aliases"),
    ],
)
def test_an_invalid_history_is_refused(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_record_refuses_a_config_whose_last_key_is_not_the_history(tmp_path):
    text = "history:\n- command: first\nsteps: 70\n"
    (tmp_path / "config.yaml").write_text(text)
    with (
        RunFolder.reopen(tmp_path, RunConfig()) as folder,
        pytest.raises(UserError, match="keep history its last key"),
    ):
        folder.record()
    assert (tmp_path / "config.yaml").read_text() == text


def test_read_config_leaves_the_address_out(tmp_path):
    config = RunConfig(run_dir=str(tmp_path / "run"), address="10.0.0.1:6379")
    with RunFolder.create(config) as folder:
        pass
    assert read_config(folder.path) == replace(config, address=None)
    assert last_address(folder.path) == "10.0.0.1:6379"


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_link_in_the_folder_is_refused_and_not_changed(tmp_path, name):
    with RunFolder.create(RunConfig(run_dir=str(tmp_path / "run"))) as folder:
        folder.metrics.touch()
    config = read_config(folder.path)
    target, link = tmp_path / "precious", folder.path / name
    if name in FOLDERS:
        target.mkdir()
        (target / "ckpt-000000000001.000").mkdir()
    elif link.exists():
        link.rename(target)
    else:
        target.write_text("mine")
    link.symlink_to(target)
    before = [target.lstat(), *target.parent.rglob("*")]
    with pytest.raises(UserError, match=f"{link} is a link to {target}, which is left alone"):
        RunFolder.reopen(folder.path, config)
    assert [target.lstat(), *target.parent.rglob("*")] == before


def fill(folder: RunFolder) -> None:
    """Creates the files and folders that a run writes before its first checkpoint."""
    folder.metrics.touch()
    folder.log.touch()
    for name in FOLDERS:
        (folder.path / name).mkdir()
        (folder.path / name / "file").touch()


@pytest.mark.parametrize("existed", [False, True])
def test_a_user_error_before_the_first_checkpoint_removes_the_folder(tmp_path, existed):
    path = tmp_path / "runs" / "deep" / "run"
    if existed:
        path.mkdir(parents=True)
    with (
        pytest.raises(UserError, match="a mistake"),
        RunFolder.create(RunConfig(run_dir=str(path))) as folder,
    ):
        fill(folder)
        raise UserError("a mistake")
    assert list(tmp_path.rglob("*")) == ([*reversed(path.parents[:2]), path] if existed else [])


def test_a_full_disk_at_the_start_leaves_no_files_and_no_lock(tmp_path, monkeypatch):
    def refuse(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dreamfleet.runtime.run_folder._replace", refuse)
    config = replace(CONFIG, run_dir=str(tmp_path / "runs" / "one"))
    for _ in range(2):  # the second time finds no lock
        with pytest.raises(UserError, match=r"cannot write the run folder .*No space left"):
            RunFolder.create(config)
        assert list(tmp_path.iterdir()) == []


def test_files_of_others_in_the_folder_are_not_removed(tmp_path):
    path = tmp_path / "run"
    with (
        pytest.raises(UserError),
        RunFolder.create(RunConfig(run_dir=str(path))) as folder,
    ):
        fill(folder)
        (path / "notes").touch()
        raise UserError("a mistake")
    assert list(path.iterdir()) == [path / "notes"]


@pytest.mark.parametrize("error", [UserError, ValueError])
def test_a_run_with_a_checkpoint_is_never_removed(tmp_path, error):
    config = RunConfig(run_dir=str(tmp_path / "run"))
    with pytest.raises(error), RunFolder.create(config) as folder:
        if error is UserError:  # other errors leave the folder in any case
            checkpoint.save(folder.checkpoints, 1, {}, agent="dreamer-lite", env="CartPole-v1")
        raise error("late")
    with pytest.raises(UserError), RunFolder.reopen(folder.path, config):
        raise UserError("a mistake in a resume")
    assert (folder.path / "config.yaml").exists()


def test_a_run_without_a_checkpoint_is_not_latest(tmp_path):
    for seed in (1, 2):
        with RunFolder.create(RunConfig(seed=seed), tmp_path) as folder:
            (folder.checkpoints / ".staging-1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no run with a checkpoint \(2 without\) under"):
        latest(tmp_path)
    with RunFolder.create(RunConfig(seed=3), tmp_path) as third:
        checkpoint.save(third.checkpoints, 1, {}, agent="dreamer-lite", env="CartPole-v1")
    os.utime(third.path / "config.yaml", (10, 10))
    assert latest(tmp_path) == third.path


def test_special_characters_in_the_folder_name_are_replaced(tmp_path):
    given = RunConfig(agent="my_pkg.module:MyAgent", env="my_pkg.envs:Mine-v0", seed=3)
    with RunFolder.create(given, runs=tmp_path) as folder:
        assert folder.path.name.endswith("_my_pkg.module-MyAgent_my_pkg.envs-Mine-v0_s3")
