"""Tests that the tables of `docs/results.md` show the recorded results."""

import json

import pytest

from benchmarks.learning.report import report
from benchmarks.processes import RESULTS
from benchmarks.tables import BEGIN, END, PAGE, command, tables
from tests.benchmarks.learning.test_report import write_records


def test_the_page_holds_the_tables_of_the_results():
    text = PAGE.read_text(encoding="utf-8")
    written = text.partition(BEGIN)[2].partition(END)[0].strip("\n")
    assert written == tables(RESULTS), "run benchmarks/tables.py"


def test_every_method_is_a_row(tmp_path):
    pytest.importorskip("matplotlib")
    env = tmp_path / "CartPole-v1"
    write_records(env, "sb3-dqn", [20.0] * 9 + [480.0])
    write_records(env, "dreamer-lite", [480.0, 500.0])
    report("CartPole-v1", env)
    run = {
        "seed": 0,
        "env": "CartPole-v1",
        "env_steps": 6000,
        "return_mean": 500.0,
        "wall_s": 170.2,
    }
    (tmp_path / "distributed.json").write_text(json.dumps({"actors": 16, "runs": [run]}))
    lines = tables(tmp_path).splitlines()
    for line in (
        "| CartPole-v1 | dreamer-lite | 1 | 500.0 | 1,000 | 0.3 |",
        "| CartPole-v1 | sb3-dqn | 1 | 480.0 | 5,000 | 1.7 |",
        "| CartPole-v1 | dreamer-lite on Ray, 16 actors | 1 | 500.0 | 6,000 | 2.8 |",
        "| CartPole-v1 | dreamer-lite | 475 | 500 | 1× | 1/1 | 100% | 1/1 |",
        "| CartPole-v1 | sb3-dqn | 475 | 5,000 | 10× | 1/1 | – | 1/1 |",
        "| CartPole-v1 | dreamer-lite "
        "| `python benchmarks/learning/train.py --agent dreamer-lite --seeds 1` |",
        "| CartPole-v1 | dreamer-lite on Ray, 16 actors | `make train` |",
    ):
        assert line in lines
    assert any(line.endswith("(../benchmarks/results/CartPole-v1/curves.png)") for line in lines)


def test_a_command_trains_all_seeds_of_its_row():
    evaluations = "--set train.eval_every=10000 --set train.eval_episodes=100"
    env = "BipedalWalker-v3"
    row = {"agent": "dreamwalker", "method": "dreamwalker", "final_returns": [1.0, 2.0]}
    recorded = f"python launch.py --env {env} --local --num-actors 1 --seed 0 --steps 9"
    expected = f"python benchmarks/learning/train.py --env {env} --steps 9 --seeds 2"
    assert command({**row, "command": f"{recorded} {evaluations}"}, env) == expected


def test_a_command_names_a_method_whose_settings_differ_from_the_preset():
    env = "BipedalWalker-v3"
    row = {"agent": "dreamwalker", "method": "on-ray", "final_returns": [1.0]}
    recorded = f"python launch.py --env {env} --num-actors 4 --seed 0 --steps 9"
    expected = f"python benchmarks/learning/train.py --env {env} --num-actors 4 --steps 9"
    found = command({**row, "command": f"{recorded} --set agent.share=0"}, env)
    assert found == f"{expected} --set agent.dream_share=0 --seeds 1 --name on-ray"


@pytest.mark.parametrize("script", ["benchmarks/peers.py", "benchmarks/learning/sb3.py"])
def test_a_recorded_command_of_a_moved_script_has_its_present_path(script):
    row = {"agent": "dreamer-lite", "method": "sb3-dqn", "final_returns": [1.0, 2.0]}
    found = command({**row, "command": f"python {script} --env CartPole-v1"}, "CartPole-v1")
    assert found == "python benchmarks/learning/sb3.py --env CartPole-v1 --seeds 2"


def test_categories_of_episodes_have_rows(tmp_path):
    pytest.importorskip("matplotlib")
    figures = {"return_mean": 390.0, "won_mean": 0.25, "tier_0/return_mean": 1700.0}
    final = {"kind": "final", "env_steps": 2000, **figures, "tier_0/won_mean": 0.984}
    env, name = tmp_path / "NumberGame-v1", "gated-rainbow"
    write_records(env, name, [100.0, 360.0], [100.0, 370.0], agent=name, final=final)
    report("NumberGame-v1", env)
    lines = tables(tmp_path).splitlines()
    begin = lines.index("| Method | Category | Return | Won |")
    assert lines[begin + 2] == "| gated-rainbow | all | 390.0 | 0.25 |"
    assert lines[begin + 3] == "| gated-rainbow | tier_0 | 1700.0 | 0.984 |"


def test_missing_measurements_are_named(tmp_path):
    lines = [line for line in tables(tmp_path).splitlines() if "not measured yet" in line]
    assert lines == [
        "| CartPole-v1 | dreamer-lite on Ray | 0 | not measured yet |  |  |",
        "Start-up: not measured yet.",
        "Replay: not measured yet.",
    ]


def test_the_replay_table_has_a_row_for_every_comparison(tmp_path):
    names = ("what", "against", "must", "unit", "measured")
    rows = [
        ("insert", "SB3", 10.0, "rows", [11.0, 9.0, 12.0]),
        ("memory", "itself", 2.0, "%", [0.5]),
        ("cycle", "cpprb", 1.0, "rows", []),
    ]
    found = {
        "quick": False,
        "rounds": 5,
        "cpus": 2,
        "python": "3.11",
        "numpy": "2.4",
        "copy_gb_s": [7.0, 9.0],
    }
    found["rows"] = [
        {"ours": [], "theirs": [], **dict(zip(names, row, strict=True))} for row in rows
    ]
    (tmp_path / "replay.json").write_text(json.dumps(found))
    lines = tables(tmp_path).splitlines()
    assert "| insert | SB3 | ≥ 10× | 11.00× | 9.00× |" in lines
    assert "| memory | itself | ≤ 2 % | 0.50 % | 0.50 % |" in lines
    assert "| cycle | cpprb | ≥ 1× | not measured yet |  |" in lines
    assert "np.copyto 8.0 GB/s" in lines[-2]
