"""Tests the replay benchmark with tiny sizes, and its workloads of other libraries."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.replay.bench import cells, selected
from benchmarks.replay.comparisons import rows as benchmark_rows
from benchmarks.replay.libraries import bare_gather, transitions, vector_steps
from benchmarks.replay.rows import ATARI, EPISODE, LOW, STREAMS, chunks, endless, episodes
from dreamfleet import cli

ACROSS_PROCESSES = ("processes", "processes-pixels")


def measured(tmp_path, capsys, names):
    """Runs the replay benchmark for the rows `names` with tiny sizes.

    Returns (JSON record, captured output).
    """
    file = tmp_path / "replay.json"
    args = ["bench", "replay", "--quick", "--rounds", "2", "--json", str(file), "--rows", *names]
    assert cli.main(args) == 0
    return json.loads(file.read_text()), capsys.readouterr()


def test_every_row_in_one_process_runs_and_names_missing_libraries(tmp_path, capsys):
    names, left_out = selected([], quick=True)
    assert left_out == list(ACROSS_PROCESSES)
    found, printed = measured(tmp_path, capsys, names)
    assert [row["name"] for row in found["rows"]] == names
    for row in found["rows"]:
        what = f"| {row['what']} | {row['against']} |"
        assert what in printed.out
        if row["skipped"]:
            assert row["ours"] and not row["measured"]
            assert f"skipped: {row['skipped']}" in printed.out
        else:
            assert len(row["measured"]) == (1 if row["name"] in ("sums", "memory") else 2)
            assert np.isfinite(row["measured"]).all()
    skipped = any("cpprb" in row["skipped"] for row in found["rows"])
    assert skipped == (find_spec("cpprb") is None)
    assert "tiny sizes, not those of the table" in printed.out
    assert len(found["copy_gb_s"]) == sum(len(r["ours"] or r["measured"]) for r in found["rows"])


def test_quick_leaves_out_rows_that_start_ray_unless_rows_are_named():
    every = list(benchmark_rows())
    assert selected([], quick=False) == (every, [])
    names, left_out = selected([], quick=True)
    assert (set(names) | set(left_out), left_out) == (set(every), list(ACROSS_PROCESSES))
    assert selected(["processes", "sums"], quick=True) == (["processes", "sums"], [])


def test_a_recorded_row_has_its_present_description_and_its_remark():
    record = {"name": "sums", "what": "an earlier description", "against": "itself", "must": 1.0}
    record |= {"unit": "· 10⁻¹²", "measured": [0.5, 0.7, 0.2], "ours": [], "theirs": []}
    what = benchmark_rows()["sums"].what
    figures = ("itself", "≤ 1 · 10⁻¹²", "0.50 · 10⁻¹²", "0.70 · 10⁻¹²", "–", "–")
    assert cells(record) == (what, *figures)
    assert cells({**record, "remark": "smaller"})[0] == f"{what} (smaller)"


@pytest.mark.ray
@pytest.mark.costly
def test_the_rows_across_processes_run_without_reverb(ray_here, tmp_path, capsys):
    found, _ = measured(tmp_path, capsys, ACROSS_PROCESSES)
    assert all(len(row["ours"]) == 2 and "Reverb" in row["skipped"] for row in found["rows"])


def test_transitions_have_the_values_of_the_rows():
    rows = episodes(LOW, 2)
    made = transitions(rows)
    found = {name: np.concatenate([part[name] for part in made]) for name in ("obs", "rew")}
    steps = [
        (rows["obs"][n, t], rows["reward"][n, t + 1])
        for begin in range(0, 2 * EPISODE, 64)
        for n in range(STREAMS.size)
        for t in range(begin, begin + 64)
        if not rows["last"][n, t]
    ]
    np.testing.assert_array_equal(found["obs"], [obs for obs, _ in steps])
    np.testing.assert_array_equal(found["rew"], [reward for _, reward in steps])


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


def test_endless_rows_have_one_first_row():
    feed = endless(LOW, 1)
    first = np.concatenate([next(feed)["first"] for _ in range(9)], axis=1)
    assert first[:, 0].all()
    assert not first[:, 1:].any()
    assert len(chunks(episodes(LOW, 1))) == 4


def test_a_bare_gather_takes_consecutive_rows():
    taken = bare_gather(np.arange(100), 5, 8)()
    assert taken.shape == (5, 8)
    assert (np.diff(taken, axis=1) == 1).all()
