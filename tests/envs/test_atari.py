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


def by_area(screen: Array, size: tuple[int, int] = (84, 84)) -> Array:
    """Returns a screen of shape (rows, columns) or (rows, columns, 3), resized to `size`.

    Each pixel is the mean of the area it covers.
    """

    def weights(before: int, after: int) -> Array:
        edges = np.linspace(0, before, after + 1)
        places = np.arange(before)
        upper = np.minimum(edges[1:, None], places + 1)
        covered = upper - np.maximum(edges[:-1, None], places)
        return np.clip(covered, 0, None) * after / before

    rows, columns = (weights(*pair) for pair in zip(screen.shape, size, strict=False))
    return np.moveaxis(np.tensordot(rows, screen, 1).swapaxes(1, -1) @ columns.T, -1, 1)


class Console:
    """One game of Space Invaders in ale-py's emulator, played without the vectorised emulator.

    Frames are made as in Mnih et al. (2015): the maximum of a step's last two screens.
    """

    def __init__(self, size: tuple[int, int] = (84, 84), colour: bool = False, skip: int = 4):
        self.ale: Any = ale_py.ALEInterface()
        self.ale.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("random_seed", 1)
        self.ale.loadROM(ale_py.roms.get_rom_path("space_invaders"))
        self._screen = self.ale.getScreenRGB if colour else self.ale.getScreenGrayscale
        self._size, self._skip = size, skip

    def frame(self) -> Array:
        return by_area(self._screen(), self._size)

    def step(self, action: int) -> tuple[Array, float]:
        """Returns the frame and the reward of a step."""
        paid, screens = 0.0, [self._screen()]
        for _ in range(self._skip):
            paid += self.ale.act(self.ale.getMinimalActionSet()[action])
            screens.append(self._screen())
        return by_area(np.maximum(*screens[-2:]), self._size), paid


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
    console = Console()
    np.testing.assert_allclose(rows["obs"][0, 0, :, :, 0], console.frame(), atol=1)
    for t, action in enumerate(actions[:, 0], 1):
        frame, paid = console.step(action)
        np.testing.assert_allclose(rows["obs"][t, 0, :, :, 0], frame, atol=1)
        assert rows["reward"][t, 0] == paid


@pytest.mark.parametrize(("size", "shape"), [(64, (64, 64)), ([105, 80], (105, 80))])
def test_frames_in_colour_and_of_another_size_are_those_of_the_single_emulator(size, shape):
    options = {**STILL, "size": size, "colour": True}
    actions = random_actions(60, 1)
    rows = unroll(GymVector(ENV, 1, seed=0, options=options), actions)
    assert rows["obs"].shape == (61, 1, *shape, 3) and rows["obs"].dtype == np.uint8
    console = Console(shape, colour=True)
    for t, action in enumerate(actions[:, 0], 1):
        np.testing.assert_allclose(rows["obs"][t, 0], console.step(action)[0], atol=1)


@pytest.mark.parametrize("skip", [2, 7])
def test_a_step_has_as_many_frames_as_frameskip_says(skip):
    actions = random_actions(150, 1)
    rows = unroll(GymVector(ENV, 1, seed=0, options={**STILL, "frameskip": skip}), actions)
    console = Console(skip=skip)
    for t, action in enumerate(actions[:, 0], 1):
        frame, paid = console.step(action)
        np.testing.assert_allclose(rows["obs"][t, 0, :, :, 0], frame, atol=1)
        assert rows["reward"][t, 0] == paid


@pytest.mark.parametrize("colour", [False, True])
def test_a_stack_holds_the_last_frames_with_the_newest_last(colour):
    options, actions = {**STILL, "size": 48, "colour": colour}, random_actions(30, 2)
    frames = unroll(GymVector(ENV, 2, seed=0, options=options), actions)["obs"]
    stacks = unroll(GymVector(ENV, 2, seed=0, options={**options, "stack": 3}), actions)["obs"]
    before = np.concatenate([np.zeros_like(frames[:2]), frames])  # black before the game
    expected = np.concatenate([before[:-2], before[1:-1], frames], -1)
    np.testing.assert_array_equal(stacks, expected)


def test_the_full_action_space_has_the_18_actions_of_the_console():
    assert registry.describe(ENV, full_action_space=True).action == Space((), "int64", n=18)


def test_a_repeat_probability_of_one_ignores_all_actions():
    options, actions = {**STILL, "repeat_action_probability": 1.0}, random_actions(60, 1)
    ignored = unroll(GymVector(ENV, 1, seed=0, options=options), actions)["obs"]
    still = unroll(GymVector(ENV, 1, seed=0, options=STILL), 0 * actions)["obs"]
    np.testing.assert_array_equal(ignored, still)
    assert not np.array_equal(still, unroll(GymVector(ENV, 1, 0, options=STILL), actions)["obs"])


@pytest.mark.parametrize("size", [0, 211, 64.0, True, "64", [64], [64, 0], [64, 64, 3]])
def test_a_wrong_size_is_refused(size):
    with pytest.raises(
        UserError, match=r"env\.size must be a whole number from 1 to 210, or a list"
    ):
        registry.describe(ENV, size=size)


@pytest.mark.parametrize("stack", [0, 17, 1.5, True])
def test_a_wrong_stack_is_refused(stack):
    with pytest.raises(UserError, match=r"env\.stack must be a whole number from 1 to 16; found"):
        registry.describe(ENV, stack=stack)


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


def test_after_a_lost_life_the_game_goes_on_in_the_next_episode():
    actions = random_actions(1_000, 1)
    env = GymVector(ENV, 1, seed=0, options={**STILL, "episodic_life": True})
    row, console = env.reset(), Console()
    points, lives, ends, games = 0.0, 3, 0, 0
    for action in actions[:, 0]:
        begins, new_game = bool(row["last"][0]), console.ale.game_over()
        row = env.step(np.array([action]))
        if new_game:
            console.ale.reset_game()
            points, lives, games = 0.0, 3, games + 1
            frame, paid = console.frame(), 0.0
        else:
            frame, paid = console.step(0 if begins else action)
        if not console.ale.game_over():  # the step that ends a game has fewer frames
            np.testing.assert_allclose(row["obs"][0, :, :, 0], frame, atol=1)
        paid = 0.0 if begins else paid  # the first row of an episode has no reward
        points += paid
        lost, lives = console.ale.lives() < lives, console.ale.lives()
        assert row["first"][0] == begins and row["reward"][0] == paid
        assert row["last"][0] == row["terminal"][0] == (lost or console.ale.game_over())
        assert env.info["lives"][0] == lives and env.info["game_return"][0] == points
        ends += row["last"][0]
    env.close()
    assert games >= 1 and ends >= 3 * games


def test_whole_games_report_neither_lives_nor_a_second_return():
    env = GymVector(ENV, 1, seed=0)
    env.reset()
    env.step(np.array([1]))
    assert env.info == {}
    env.close()


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
