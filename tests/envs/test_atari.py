"""Tests that rows of Atari games have the frames and rewards of the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ale_py = pytest.importorskip("ale_py")

from dreamfleet.core.errors import UserError  # noqa: E402
from dreamfleet.core.types import Array, Batch, Space  # noqa: E402
from dreamfleet.envs import registry  # noqa: E402
from dreamfleet.envs.vector import GymVector  # noqa: E402

ENV = "ALE/SpaceInvaders-v5"
STILL = {"repeat_action_probability": 0.0, "noop_max": 0}  # nothing is left to chance


def unroll(env: GymVector, actions: Array) -> Batch:
    """Resets N games and plays actions (T, N). Returns all rows, (T + 1, N, …)."""
    rows = [env.reset(), *(env.step(action) for action in actions)]
    env.close()
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def random_actions(steps: int, n: int) -> Array:
    return np.random.default_rng(0).integers(6, size=(steps, n))


def by_area(screen: Array) -> Array:
    """Returns a grey screen resized to 84 × 84 pixels.

    Each pixel is the mean of the area it covers.
    """

    def weights(size: int) -> Array:
        edges = np.linspace(0, size, 85)
        places = np.arange(size)
        upper = np.minimum(edges[1:, None], places + 1)
        covered = upper - np.maximum(edges[:-1, None], places)
        return np.clip(covered, 0, None) * 84 / size

    height, width = screen.shape
    return weights(height) @ screen @ weights(width).T


def emulated(actions: Array) -> list[tuple[Array, float]]:
    """Plays actions in ale-py's emulator of one game.

    Returns the frame and the reward of each step. Frames are made as in Mnih et al. (2015): grey,
    and the maximum of a step's last two screens.
    """
    ale: Any = ale_py.ALEInterface()
    ale.setLoggerMode(ale_py.LoggerMode.Error)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 1)
    ale.loadROM(ale_py.roms.get_rom_path("space_invaders"))
    choices = ale.getMinimalActionSet()
    found = [(by_area(ale.getScreenGrayscale()), 0.0)]
    for action in actions:
        paid, screens = 0.0, []
        for _ in range(4):
            paid += ale.act(choices[action])
            screens.append(ale.getScreenGrayscale())
        found.append((by_area(np.maximum(*screens[-2:])), paid))
    return found


def test_a_row_is_one_grey_frame_with_the_raw_reward():
    spec = registry.describe(ENV)
    assert spec.obs == Space((84, 84, 1), "uint8") and spec.obs.image
    assert spec.action == Space((), "int64", n=6)
    rows = unroll(GymVector(ENV, 2, seed=0, options=STILL), random_actions(200, 2))
    assert rows["obs"].shape == (201, 2, 84, 84, 1) and rows["obs"].dtype == np.uint8
    assert set(np.unique(rows["reward"])) >= {0.0, 5.0, 10.0}


def test_frames_and_rewards_are_those_of_the_single_emulator():
    actions = random_actions(200, 1)
    rows = unroll(GymVector(ENV, 1, seed=0, options=STILL), actions)
    for t, (frame, paid) in enumerate(emulated(actions[:, 0])):
        np.testing.assert_allclose(rows["obs"][t, 0, :, :, 0], frame, atol=1)
        assert rows["reward"][t, 0] == paid


def test_a_game_that_is_over_starts_again_on_the_next_row():
    rows = unroll(GymVector(ENV, 2, seed=3), random_actions(900, 2))
    assert rows["last"].sum() >= 2
    np.testing.assert_array_equal(rows["terminal"], rows["last"])
    np.testing.assert_array_equal(rows["first"][1:], rows["last"][:-1])
    assert rows["first"][0].all() and not rows["reward"][rows["first"]].any()
    start = rows["obs"][0].mean(0)
    for t, i in np.argwhere(rows["first"][1:]):
        again, over = rows["obs"][t + 1, i], rows["obs"][t, i]
        assert np.abs(again - start).mean() < 0.5 * np.abs(over - start).mean()


def test_a_game_that_takes_too_long_is_truncated():
    options = {**STILL, "max_num_frames_per_episode": 40}
    rows = unroll(GymVector(ENV, 2, seed=0, options=options), np.zeros((23, 2), np.int64))
    ends = [[10, 0], [10, 1], [21, 0], [21, 1]]  # after ten steps of four frames, and eleven rows
    assert np.argwhere(rows["last"]).tolist() == ends
    assert not rows["terminal"].any()


def test_a_lost_life_ends_an_episode_with_episodic_life_only():
    lengths = []
    for options in ({}, {"episodic_life": True}):
        rows = unroll(GymVector(ENV, 1, seed=0, options=options), np.zeros((700, 1), np.int64))
        lengths.append(int(np.argmax(rows["terminal"][:, 0])))
    assert 0 < lengths[1] < 0.7 * lengths[0]


def test_each_game_has_its_own_seed_derived_from_the_seed_of_the_run():
    actions = random_actions(60, 3)
    one, same, other = (unroll(GymVector(ENV, 3, seed), actions)["obs"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    alike = np.zeros((60, 3), np.int64)
    apart = unroll(GymVector(ENV, 3, seed=0), alike)["obs"]
    assert not np.array_equal(apart[:, 0], apart[:, 1])
    assert not np.array_equal(apart[:, 1], apart[:, 2])


def test_a_game_with_its_own_seed_does_not_depend_on_other_games():
    env, alone, actions = (
        GymVector(ENV, 3, seed=0),
        GymVector(ENV, 1, seed=1),
        random_actions(40, 3),
    )
    env.reset(), alone.reset()
    seen = [env.reset([7, 8, 9])["obs"], *(env.step(action)["obs"] for action in actions)]
    same = [alone.reset([8])["obs"], *(alone.step(action[1:2])["obs"] for action in actions)]
    np.testing.assert_array_equal(np.stack(seen)[:, 1], np.stack(same)[:, 0])


def test_an_argument_the_games_do_not_take_is_named():
    with pytest.raises(UserError, match=r"could not be built with stack_num=4: .*stack_num"):
        GymVector(ENV, 1, seed=0, options={"stack_num": 4})


def test_the_film_shows_the_first_of_the_games_in_colours(tmp_path):
    actions = random_actions(30, 2)
    env = GymVector(ENV, 2, seed=5, video_dir=tmp_path)
    plain = GymVector(ENV, 2, seed=6)
    expected = [plain.reset([3, 4])["obs"], *(plain.step(action)["obs"] for action in actions)]
    rows = [env.reset([3, 4])]
    for action in actions:
        screen = env._filmed.render()
        assert screen.shape == (210, 160, 3)
        grey = by_area(screen @ np.array([0.2989, 0.587, 0.114]))
        assert np.abs(grey - rows[-1]["obs"][0, :, :, 0]).max() < 3
        rows.append(env.step(action))
    env.films()
    env.close()
    np.testing.assert_array_equal([row["obs"] for row in rows], expected)
    assert [path.name for path in tmp_path.iterdir()] == [
        "ALE-SpaceInvaders-v5_episode-1_cut-short.mp4"
    ]
