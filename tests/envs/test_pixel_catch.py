"""Compares PixelCatch with a second, slow implementation of its rules for one game."""

import itertools
import math
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Space
from dreamfleet.envs import registry
from dreamfleet.envs.pixel_catch import BALL_COLOUR, MARK_COLOUR, PADDLE_COLOUR
from dreamfleet.envs.vector import GymVector

LEFT, STAY, RIGHT = 0, 1, 2
SPEEDS = (*range(-14, -4), *range(5, 15))
FALL = 6  # steps that a ball falls; one more step brings the next ball


def batch(n, **options):
    return gym.make_vec("PixelCatch-v1", n, vectorization_mode="vector_entry_point", **options)


class Slow:
    """One game of PixelCatch, implemented a second time with one pixel after another.

    throws: for each ball, its first column and its speed.
    """

    def __init__(self, throws):
        self.throws, self.balls_left, self.paddle = list(throws), len(throws), 24
        self.throw()

    def throw(self):
        (self.x, self.v), self.y = self.throws.pop(0), 8

    def step(self, action):
        self.paddle = min(max(self.paddle + (-8, 0, 8)[action], 0), 48)
        if self.y == 56:
            self.throw()
            return 0, False
        self.y += 8
        for _ in range(abs(self.v)):
            if not 0 <= self.x + math.copysign(1, self.v) <= 56:
                self.v = -self.v
            self.x += int(math.copysign(1, self.v))
        if self.y < 56:
            return 0, False
        self.balls_left -= 1
        return int(self.x + 4 in range(self.paddle, self.paddle + 16)), self.balls_left == 0

    def screen(self):
        pixels = np.zeros((64, 64, 3), np.uint8)
        for y, x in itertools.product(range(64), range(64)):
            pixels[y, x] = (12, 16, 32)
            if y < 2 and x % 4 in (1, 2) and x // 4 < self.balls_left:
                pixels[y, x] = MARK_COLOUR
            if y >= 56 and self.paddle <= x < self.paddle + 16:
                pixels[y, x] = PADDLE_COLOUR
            if self.y <= y < self.y + 8 and self.x <= x < self.x + 8:
                pixels[y, x] = BALL_COLOUR
        return pixels


def first_column(screen, colour):
    """Returns the leftmost column of a colour on a screen (64, 64, 3), or None."""
    columns = np.flatnonzero((screen == colour).all(-1).any(0))
    return int(columns[0]) if len(columns) else None


def towards(paddle, ball):
    """Returns the action that brings the middle of the paddle nearer to the middle of the ball."""
    distance = (ball + 4) - (paddle + 8)
    return STAY if abs(distance) <= 4 else RIGHT if distance > 0 else LEFT


def bounced(column, speed, steps):
    """Returns the column of a ball after some steps, moved pixel by pixel."""
    for _ in range(abs(speed) * steps):
        if not 0 <= column + np.sign(speed) <= 56:
            speed = -speed
        column += int(np.sign(speed))
    return column


class Watcher:
    """A player who sees the screens of one game only, and remembers those of the current ball."""

    def __init__(self):
        self.seen = []

    def act(self, screen):
        self.seen.append(first_column(screen, BALL_COLOUR))
        paddle = first_column(screen, PADDLE_COLOUR)
        if len(self.seen) == FALL + 1:
            self.seen = []
        if len(self.seen) < 2:
            return towards(paddle, 28)  # waits in the middle
        speeds = [v for v in SPEEDS if self._fits(v)]
        return towards(paddle, bounced(self.seen[0], speeds[0], FALL))

    def _fits(self, speed):
        return all(bounced(self.seen[0], speed, t) == x for t, x in enumerate(self.seen))


def caught(policy, n, seed=0, **options):
    """Plays one game in each of n environments. Returns their returns (n,) and the steps.

    policy: a function of the environment and its observations (n, 64, 64, 3).
    """
    env = batch(n, **options)
    obs, _ = env.reset(seed=seed)
    total, over, steps = np.zeros(n), np.zeros(n, bool), 0
    while not over.any():
        obs, reward, over, truncated, _ = env.step(np.asarray(policy(env, obs)))
        total, steps = total + reward, steps + 1
        assert not truncated.any() and set(reward.tolist()) <= {0.0, 1.0}
    assert over.all()
    return total, steps


def oracle(env, obs):
    """A policy that knows the speeds of all balls."""
    end = [bounced(x, v, FALL) for x, v in zip(env.start, env.speed, strict=True)]
    return [towards(p, x) for p, x in zip(env.paddle, end, strict=True)]


def uniform(seed):
    random = np.random.default_rng(seed)
    return lambda env, obs: random.integers(3, size=env.num_envs)


# ------------------------------------------------------------------------------------- the rules


def test_screens_rewards_and_ends_equal_a_slow_reference_game():
    n, balls, random = 6, 3, np.random.default_rng(1)
    env = batch(n, balls=balls)
    obs, _ = env.reset(seed=2)
    throws = [[(x, v)] for x, v in zip(env.start, env.speed, strict=True)]
    actions = random.integers(3, size=(balls * 7 - 1, n))
    seen, ends = [obs], []
    for action in actions:
        obs, reward, over, _, _ = env.step(action)
        seen.append(obs)
        ends.append((reward, over))
        for i in np.flatnonzero(env.age == 0):
            throws[i].append((env.start[i], env.speed[i]))
    assert over.all()
    for i in range(n):
        slow = Slow(throws[i])
        np.testing.assert_array_equal(seen[0][i], slow.screen())
        for t, action in enumerate(actions[:, i]):
            assert slow.step(action) == (ends[t][0][i], ends[t][1][i])
            np.testing.assert_array_equal(seen[t + 1][i], slow.screen())


def test_balls_start_anywhere_with_all_speeds():
    env, n, random, drawn = batch(600), 60_000, np.random.default_rng(0), []
    for _ in range(100):
        env.begin(np.arange(600), random.random((2, 600)))
        drawn.append((env.start.copy(), env.speed.copy()))
    start, speed = np.concatenate(drawn, 1)
    for values, expected in ((start, range(57)), (speed, SPEEDS)):
        found, counts = np.unique(values, return_counts=True)
        each = n / len(expected)
        assert found.tolist() == list(expected)
        assert counts == pytest.approx([each] * len(expected), abs=5 * math.sqrt(each))


def test_a_player_who_knows_the_speeds_catches_each_of_1000_balls():
    total, steps = caught(oracle, 100)
    assert (total == 10).all() and steps == 69


def test_every_ball_can_be_caught_from_every_place_of_the_paddle():
    cases = np.array([(p, x, v) for p in (0, 8, 48) for x in range(57) for v in SPEEDS])
    env = batch(len(cases), balls=1)
    env.reset(seed=0)
    env.paddle, env.start, env.speed = (column.copy() for column in cases.T)
    for _ in range(FALL):
        _, reward, _, _, _ = env.step(np.array(oracle(env, None)))
    assert reward.all()


def test_a_player_who_remembers_the_screens_of_a_ball_catches_it():
    players = [Watcher() for _ in range(100)]
    total, _ = caught(lambda env, obs: [a.act(o) for a, o in zip(players, obs, strict=True)], 100)
    assert total.mean() > 9.95


def test_a_player_who_follows_the_ball_without_memory_misses_most_of_them():
    def follow(env, obs):
        places = [(first_column(o, PADDLE_COLOUR), first_column(o, BALL_COLOUR)) for o in obs]
        return [STAY if p is None else towards(p, x) for p, x in places]

    total, _ = caught(follow, 100)
    assert 3.5 < total.mean() < 4.5


def test_random_play_catches_a_quarter_of_the_balls():
    total, _ = caught(uniform(0), 1_000)
    assert total.mean() == pytest.approx(2.65, abs=0.25)


@pytest.mark.parametrize(("balls", "steps"), [(1, 6), (16, 111)])
def test_the_number_of_balls_is_the_best_return(balls, steps):
    total, taken = caught(oracle, 8, balls=balls)
    assert (total == balls).all() and taken == steps


@pytest.mark.parametrize("balls", [0, 17, 2.5, True, "many"])
def test_a_wrong_number_of_balls_is_refused(balls):
    with pytest.raises(UserError, match=r"env\.balls must be a whole number from 1 to 16; found"):
        registry.describe("PixelCatch-v1", balls=balls)


# ------------------------------------------------------------------------- as gymnasium has them


def test_gymnasiums_checker_finds_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("PixelCatch-v1", render_mode="rgb_array").unwrapped)


def test_the_spaces_are_those_of_images_and_three_actions():
    spec = registry.describe("PixelCatch-v1")
    assert spec.obs == Space((64, 64, 3), "uint8") and spec.obs.image
    assert spec.action == Space((), "int64", n=3)


def test_the_id_resolves_in_every_process_and_is_listed():
    assert "PixelCatch-v1" in registry.known()
    code = "import gymnasium; gymnasium.make('dreamfleet.envs.pixel_catch:PixelCatch-v1').reset()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_game_with_its_own_seed_equals_the_game_of_a_single_environment():
    games, game, random = batch(3, balls=2), gym.make("PixelCatch-v1", balls=2), uniform(0)
    seen, _ = games.reset(seed=[5, 6, 7])
    alone, _ = game.reset(seed=6)
    ended = False
    for _ in range(70):
        np.testing.assert_array_equal(seen[1], alone)
        actions = random(games, seen)
        seen, reward, over, _, _ = games.step(actions)
        if ended:
            (alone, _), paid, ended = game.reset(), 0.0, False
        else:
            alone, paid, ended, _, _ = game.step(actions[1])
        assert (reward[1], over[1]) == (paid, ended)


def test_a_seed_decides_all_games_and_later_resets_continue_its_generator():
    def run(seed):
        env, seen = batch(3, balls=1), []
        for again in (seed, None):
            seen.append(env.reset(seed=again)[0])
            seen += [env.step(np.full(3, STAY))[0] for _ in range(20)]
        return np.array(seen)

    np.testing.assert_array_equal(run(3), run(3))
    assert not np.array_equal(run(3), run(4))
    assert not np.array_equal(run(3)[:21], run(3)[21:])


def test_rows_of_a_run_start_again_after_the_last_ball():
    env = GymVector("PixelCatch-v1", 2, seed=0, options={"balls": 1})
    rows = [env.reset(), *(env.step(np.array([LEFT, RIGHT])) for _ in range(16))]
    ends = np.argwhere([row["last"] for row in rows])
    assert ends.tolist() == [[6, 0], [6, 1], [13, 0], [13, 1]]
    for row, after in itertools.pairwise(rows):
        np.testing.assert_array_equal(row["last"], row["terminal"])
        np.testing.assert_array_equal(row["last"], after["first"])
        assert not after["reward"][after["first"]].any()
    assert first_column(rows[7]["obs"][0], PADDLE_COLOUR) == 24  # in the middle again
    assert first_column(rows[6]["obs"][1], PADDLE_COLOUR) == 48


def test_earlier_observations_do_not_change():
    env = batch(2)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(np.array([LEFT, RIGHT]))
    np.testing.assert_array_equal(first, kept)


def test_a_picture_is_the_observation_enlarged_four_times():
    env = gym.make("PixelCatch-v1", render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (256, 256, 3)
    for y, x in itertools.product(range(4), range(4)):
        np.testing.assert_array_equal(picture[y::4, x::4], obs)
    assert batch(2).render() is None


def test_games_are_filmed(tmp_path):
    pytest.importorskip("moviepy")
    env = GymVector("PixelCatch-v1", 2, seed=0, options={"balls": 1}, video_dir=tmp_path)
    env.reset([1, 2])
    for _ in range(FALL):
        env.step(np.array([LEFT, RIGHT]))
    assert [path.name for path in env.films()] == ["PixelCatch-v1_episode-1.mp4"]
    env.close()
