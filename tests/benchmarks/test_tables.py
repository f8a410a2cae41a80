"""`docs/results.md` shows the measurements."""

import json

import pytest

from benchmarks.learning.report import report
from benchmarks.processes import ROOT
from benchmarks.tables import BEGIN, END, PAGE, command, details, overview, tables
from tests.benchmarks.learning.test_report import method


def test_the_page_holds_the_tables_of_the_results():
    text = PAGE.read_text(encoding="utf-8")
    written = text.partition(BEGIN)[2].partition(END)[0].strip("\n")
    assert written == tables(ROOT / "benchmarks" / "results"), "run benchmarks/tables.py"


def test_every_result_is_a_row(tmp_path):
    pytest.importorskip("matplotlib")
    env = tmp_path / "CartPole-v1"
    method(env, "sb3-dqn", [20.0] * 9 + [480.0])
    method(env, "dreamer-lite", [480.0, 500.0])
    report("CartPole-v1", env)
    run = {
        "seed": 0,
        "env": "CartPole-v1",
        "env_steps": 6000,
        "return_mean": 500.0,
        "wall_s": 170.2,
    }
    (tmp_path / "distributed.json").write_text(json.dumps({"actors": 16, "runs": [run]}))
    lines = overview(tmp_path).splitlines()
    assert lines[2] == (
        "| dreamer-lite | CartPole-v1 | 500.0 | ≥ 475: 500 in 1/1, at the end in 1/1 "
        "| 20 s for 1,000 steps "
        "| `python benchmarks/learning/train.py --agent dreamer-lite --seeds 1` |"
    )
    assert "≥ 475: 5,000 in 1/1, at the end in 1/1, 10 × ours" in lines[3]
    assert "16 actors | CartPole-v1 | 500.0 in 1 seeds | 6,000 | 170 s" in lines[4]
    assert "![CartPole-v1](../benchmarks/results/CartPole-v1/curves.png)" in lines


def test_a_command_makes_all_seeds_of_its_row():
    looks = "--set train.eval_every=10000 --set train.eval_episodes=100"
    env = "BipedalWalker-v3"
    row = {"agent": "dreamwalker", "method": "dreamwalker", "final_returns": [1.0, 2.0]}
    said = f"python launch.py --env {env} --local --num-actors 1 --seed 0 --steps 9 {looks}"
    made = f"python benchmarks/learning/train.py --env {env} --steps 9 --seeds 2"
    assert command({**row, "command": said}, env) == made
    said = f"python launch.py --env {env} --num-actors 4 --seed 0 --steps 9 {looks} "
    said += "--set agent.n_step=1"
    made = f"python benchmarks/learning/train.py --env {env} --num-actors 4 --steps 9 "
    made += "--set agent.n_step=1"
    found = command({**row, "command": said, "method": "on-ray"}, env)
    assert found == f"{made} --seeds 2 --name on-ray"
    said = "python benchmarks/peers.py --env CartPole-v1"  # as older records have it
    found = command({**row, "command": said, "method": "sb3"}, "CartPole-v1")
    assert found == "python benchmarks/learning/sb3.py --env CartPole-v1 --seeds 2"


def test_kinds_of_episodes_are_told_apart(tmp_path):
    pytest.importorskip("matplotlib")
    figures = {"return_mean": 390.0, "won_mean": 0.25, "tier_0/return_mean": 1700.0}
    final = {"kind": "final", "env_steps": 2000, **figures, "tier_0/won_mean": 0.984}
    env, name = tmp_path / "NumberGame-v1", "gated-rainbow"
    method(env, name, [100.0, 360.0], [100.0, 370.0], agent=name, final=final)
    report("NumberGame-v1", env)
    assert overview(tmp_path).splitlines()[2] == (
        "| gated-rainbow | NumberGame-v1 | 390.0 | ≥ 350: 1,000 in 2/2, at the end in 2/2; "
        "≥ 390: > 1,000 in 0/2, at the end in 0/2; ≥ 420: > 1,000 in 0/2, at the end in 0/2 "
        "| 20 s for 1,000 steps "
        "| `python benchmarks/learning/train.py --agent gated-rainbow --seeds 2` |"
    )
    lines = details(tmp_path).splitlines()
    begin = lines.index("| agent | 5,000 episodes of NumberGame-v1 | return | won |")
    assert lines[begin + 2] == "| gated-rainbow | all | 390.0 | 0.25 |"
    assert lines[begin + 3] == "| gated-rainbow | tier_0 | 1700.0 | 0.984 |"


def test_what_is_missing_says_so(tmp_path):
    assert overview(tmp_path).count("not measured yet") == 1
    assert details(tmp_path).count("not measured yet") == 2


def test_the_replay_is_a_row_for_every_comparison(tmp_path):
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
    found["rows"] = [{"ours": [], "theirs": [], **dict(zip(names, it, strict=True))} for it in rows]
    (tmp_path / "replay.json").write_text(json.dumps(found))
    lines = details(tmp_path).splitlines()
    assert "| insert | SB3 | ≥ 10× | 11.00× (9.00×) |" in lines
    assert "| memory | itself | ≤ 2 % | 0.50 % (0.50 %) |" in lines
    assert "| cycle | cpprb | ≥ 1× | not measured yet |" in lines
    assert "np.copyto 8.0 GB/s" in lines[-1]
