"""The bench of the replay runs, small, and counts right."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.replay.bench import table
from benchmarks.replay.libraries import bare_gather, transitions, vector_steps
from benchmarks.replay.rows import ATARI, EPISODE, LOW, STREAMS, chunks, endless, episodes
from dreamfleet import cli

APART = ("processes", "processes-pixels")


def measured(tmp_path, capsys, names):
    file = tmp_path / "replay.json"
    args = ["bench", "replay", "--quick", "--rounds", "2", "--json", str(file), "--rows", *names]
    assert cli.main(args) == 0
    return json.loads(file.read_text()), capsys.readouterr()


def test_every_row_in_one_process_runs_and_says_who_is_missing(tmp_path, capsys):
    names = [name for name in table(None) if name not in APART]
    found, said = measured(tmp_path, capsys, names)
    assert [row["name"] for row in found["rows"]] == names
    for row in found["rows"]:
        what = f"| {row['what']} | {row['against']} |"
        assert what in said.out
        if row["skipped"]:
            assert row["ours"] and not row["measured"]
            assert f"skipped: {row['skipped']}" in said.out
        else:
            assert len(row["measured"]) == (1 if row["name"] in ("sums", "memory") else 2)
            assert np.isfinite(row["measured"]).all()
    skipped = any("cpprb" in row["skipped"] for row in found["rows"])
    assert skipped == (find_spec("cpprb") is None)
    assert "tiny sizes, no measurement" in said.out
    assert len(found["copy_gb_s"]) == sum(len(r["ours"] or r["measured"]) for r in found["rows"])


@pytest.mark.slow
def test_the_rows_across_processes_run_without_a_peer(ray_here, tmp_path, capsys):
    found, _ = measured(tmp_path, capsys, APART)
    assert all(len(row["ours"]) == 2 and "Reverb" in row["skipped"] for row in found["rows"])


def test_transitions_are_those_of_the_rows():
    rows = episodes(LOW, 2)
    of = {name: np.concatenate([it[name] for it in transitions(rows)]) for name in ("obs", "rew")}
    steps = [
        (rows["obs"][n, t], rows["reward"][n, t + 1])
        for begin in range(0, 2 * EPISODE, 64)
        for n in range(STREAMS.size)
        for t in range(begin, begin + 64)
        if not rows["last"][n, t]
    ]
    np.testing.assert_array_equal(of["obs"], [obs for obs, _ in steps])
    np.testing.assert_array_equal(of["rew"], [reward for _, reward in steps])


def test_vector_steps_stack_frames_of_one_episode():
    rows = episodes(ATARI, 1)
    steps = vector_steps(rows, stack=4)
    obs, next_obs, _, reward, done = next(steps)
    np.testing.assert_array_equal(obs, rows["obs"][:, :4])
    np.testing.assert_array_equal(next_obs, rows["obs"][:, 1:5])
    np.testing.assert_array_equal(reward, rows["reward"][:, 4])
    assert not done.any()
    for _ in range(EPISODE - 5):
        *_, done = next(steps)
    assert done.all()


def test_endless_rows_open_once():
    feed = endless(LOW, 1)
    first = np.concatenate([next(feed)["first"] for _ in range(9)], axis=1)
    assert first[:, 0].all()
    assert not first[:, 1:].any()
    assert len(chunks(episodes(LOW, 1))) == 4


def test_a_bare_gather_takes_neighbouring_rows():
    taken = bare_gather(np.arange(100), 5, 8)()
    assert taken.shape == (5, 8)
    assert (np.diff(taken, axis=1) == 1).all()
