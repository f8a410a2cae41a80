"""Compares NumberGame with a second, slow implementation of its rules for one game."""

import itertools
import math
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.core.errors import UserError
from dreamfleet.envs import registry
from dreamfleet.envs.number_game import BETA, DRAW, LUCK, Games, NumberGame, bounds

SPACE = bounds()


class Slow:
    """One game of NumberGame, implemented a second time with plain numbers.

    luck: numbers in [0, 1) that replace random draws: seven for the start, five for each step.
    """

    def __init__(self, luck, tier=None, difficulty=1.0):
        self.hp, self.old_hp, self.mana = 11.0, 10.0, 220.0
        self.progress, self.resist, self.last, self.over = 0.0, 0.0, None, False
        self.arcane = (15, 16, 17)[int(3 * luck[0])]
        if tier is None:
            tier = "beta" if luck[1] < 0.25 else int(3 * luck[2])
        width = 2.1 * difficulty
        if tier == "beta":
            self.damage = [1.7 + width * math.sin(math.pi / 2 * u) ** 2 for u in luck[3:7]]
        else:
            self.damage = [1.7 + width * (tier + u) / 3 for u in luck[3:6]]

    def step(self, action, luck):
        start_hp = self.hp
        reward = -4 * (5 - self.hp) if self.hp < 5 else 0
        if action == 0:
            reward += self.light() + self.light() + self.heavy()
        elif action == 1:
            reward += self.light() + self.heavy()
        elif action == 2:
            reward += self.delayed(luck)
        elif action == 3:
            reward += penalty(self.hp / self.old_hp) + 1.35 * penalty(self.mana / 220)
            self.over = True
        if action != 3:
            self.tick(1.0, luck[0], luck[1])
        if action in (2, 3):
            self.resist = 2.0
            reward += 3
        if action == 3:
            self.tick(1.0, luck[0], luck[1])
        reward += 5 * max(0, self.hp - start_hp) + 0.3 * self.progress
        if self.hp <= 0:
            self.over, reward = True, -500 + 8 * self.progress
        elif self.progress >= 65 and not self.over:
            self.over, reward = True, 750 + 12 * self.hp
        self.last = action
        return max(-600, min(400, reward))

    def light(self):
        if self.mana <= 96:
            self.hp -= 1
            return -60
        self.hp = min(self.hp + 1.89, 10)
        self.mana -= 96
        return 0

    def heavy(self):
        if self.hp >= 10:
            self.hp = 10.5
            return -2
        self.hp = min(self.hp + 1.84, 10)
        return 0

    def delayed(self, luck):
        self.tick(0.1 + (0.3 - 0.1) * luck[2], luck[3], luck[4])
        if self.hp >= 10:
            self.hp = 10.5
            return 5
        self.hp = min(self.hp + 1.84, 10)
        return 10

    def tick(self, m, choice, spread):
        self.progress += m
        self.old_hp = self.hp
        blow = self.damage[int(choice * len(self.damage))]
        self.hp -= blow * max(1, 1 + 0.025 * (5 - self.hp)) * m
        low, high = (1.5 * 0.145, 1.5 * 0.20) if self.resist > 0 else (0.06, 0.08)
        self.hp = min(self.hp + (low + (high - low) * spread) * m, 10)
        self.resist = max(0, self.resist - m)
        self.mana = min(self.mana + self.arcane * m, 220)

    def observe(self):
        last = [float(self.last == action) for action in range(4)]
        return [self.hp / 10, self.mana / 220, *last, (self.hp - self.old_hp) / 10]


def penalty(share):
    """Returns the reward for ending the game by a draw, as a piecewise linear function.

    share: the fraction of health or mana that is left, clipped to [0, 1].
    """
    share = max(0, min(1, share))
    points = [(0, 0), (0.001, -5), (0.01, -5), (0.1, -10), (0.4, -65), (0.5, -95), (1, -100)]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if share <= x1:
            return y0 + (y1 - y0) * (share - x0) / (x1 - x0)
    raise AssertionError(share)


def sensible(obs, random):
    """A policy that heals if mana allows it and health is low, else waits.

    It beats weak enemies.
    """
    hp, mana = 10 * obs[:, 0], 220 * obs[:, 1]
    return np.where((hp < 4) & (mana > 192), 0, np.where((hp < 6) & (mana > 96), 1, 2))


def erratic(obs, random):
    """A policy that follows `sensible` in 80 % of the steps, so that games last.

    In all other steps it acts at random.
    """
    weights = random.dirichlet(np.ones(4))
    other = random.choice(4, p=weights, size=len(obs))
    return np.where(random.random(len(obs)) < 0.8, sensible(obs, random), other)


def uniform(obs, random):
    return random.integers(4, size=len(obs))


def play(policy, n, options=None, seed=0, **kwargs):
    """Plays one game of NumberGame in each of n environments with `policy`.

    Returns four arrays (n,): the return, the kind of enemy, the length, and whether the game was
    won. options: of the reset. seed: of the games and the policy.
    """
    env, random = gym.make_vec("NumberGame-v1", n, **kwargs), np.random.default_rng(seed)
    obs, info = env.reset(seed=seed, options=options)
    assert obs in env.observation_space
    kind, total, length = info["tier"], np.zeros(n), np.zeros(n, int)
    playing, won = np.ones(n, bool), np.zeros(n, bool)
    while playing.any():
        obs, reward, terminated, truncated, _ = env.step(policy(obs, random))
        assert obs in env.observation_space and not truncated.any()
        assert (reward >= -600).all() and (reward <= 400).all()
        total, length = total + reward * playing, length + playing
        won |= playing & (reward == 400)
        playing &= ~terminated
    return total, kind, length, won


# ------------------------------------------------------------------------------------- the rules


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tier=st.sampled_from([None, 0, 1, 2, "beta"]),
    difficulty=st.sampled_from([1.0, 1.0, 0.5, 0.0]),
)
def test_every_game_of_a_batch_equals_a_slow_reference_game(seed, tier, difficulty):
    n, random = 16, np.random.default_rng(seed)
    games, everyone = Games(n), np.arange(n)
    luck = random.random((LUCK, n))
    kind = None if tier is None else [0, 1, 2, "beta"].index(tier)
    games.start(everyone, luck, kind, difficulty)
    slow = [Slow(luck[:, i], tier, difficulty) for i in range(n)]
    for _ in range(70):
        obs = games.observe()
        expected = np.array([game.observe() for game in slow], np.float32)
        np.testing.assert_allclose(obs, expected, atol=1e-6)
        assert SPACE.contains(obs[0])
        luck, action = random.random((LUCK, n)), erratic(obs, random)
        reward, over = games.play(action, luck)
        paid = [
            game.step(a, luck[:, i]) for i, (game, a) in enumerate(zip(slow, action, strict=True))
        ]
        np.testing.assert_allclose(reward, paid, atol=1e-9)
        assert over.tolist() == [game.over for game in slow]
        rows = np.flatnonzero(over)
        luck = random.random((LUCK, n))
        games.start(rows, luck[:, rows], kind, difficulty)
        for i in rows:
            slow[i] = Slow(luck[:, i], tier, difficulty)


def test_enemies_are_drawn_as_the_rules_say():
    n, games = 40_000, Games(40_000)
    games.start(np.arange(n), np.random.default_rng(0).random((LUCK, n)), None, 1.0)
    assert np.bincount(games.kind) == pytest.approx([n / 4] * 4, abs=4 * math.sqrt(n * 3 / 16))
    regained, count = np.unique(games.arcane, return_counts=True)
    assert regained.tolist() == [15, 16, 17]
    assert count == pytest.approx([n / 3] * 3, abs=4 * math.sqrt(n * 2 / 9))
    for tier, low in enumerate((1.7, 2.4, 3.1)):
        blows = games.damage[games.kind == tier, :3]
        assert low <= blows.min() < low + 0.01 and low + 0.69 < blows.max() <= low + 0.7
        assert blows.mean() == pytest.approx(low + 0.35, abs=0.01)
    beta = (games.damage[games.kind == BETA] - 1.7) / 2.1
    assert beta.mean() == pytest.approx(1 / 2, abs=0.01)
    assert beta.var() == pytest.approx(1 / 8, abs=0.003)  # ab / ((a + b)^2 (a + b + 1))
    assert np.median(beta) == pytest.approx(1 / 2, abs=0.02)


@pytest.mark.parametrize(
    "policy", [uniform, erratic, sensible, lambda obs, _: np.zeros(len(obs), int)]
)
def test_no_observation_leaves_its_bounds_and_no_game_lasts_beyond_65_steps(policy):
    for tier in (0, 2, "beta"):
        _, _, length, _ = play(policy, 2_000, {"tier": tier})
        assert length.max() <= 65


def test_the_bounds_are_reached_in_the_worst_case():
    games = Games(1)
    games.start(np.array([0]), np.zeros((LUCK, 1)), 2, 1.0)
    games.hp[:], games.mana[:], games.damage[:] = 1e-9, 0.0, 3.8
    games.play(np.array([0]), np.zeros((LUCK, 1)))
    np.testing.assert_allclose(games.observe()[0, [0, 1, 6]], SPACE.low[[0, 1, 6]], atol=1e-6)
    games.start(np.array([0]), np.zeros((LUCK, 1)), None, 1.0)
    np.testing.assert_array_equal(games.observe()[0, [0, 1, 6]], SPACE.high[[0, 1, 6]])


# -------------------------------------------------------------------------------- the two scores


def test_random_play_has_the_return_of_the_original():
    """The numbers are from 300,000 games of the original program with random play.

    The mean return is -307.0 and the standard deviation 180.4. The other four means are by kind of
    enemy.
    """
    total, kind, _, won = play(uniform, 20_000)
    assert total.mean() == pytest.approx(-307.0, abs=4 * 182 / math.sqrt(20_000))
    assert total.std() == pytest.approx(180.4, abs=8)
    assert not won.any()
    for enemy, expected in enumerate((-281.4, -307.4, -331.8, -307.2)):
        mine = total[kind == enemy]
        assert mine.mean() == pytest.approx(expected, abs=4 * 182 / math.sqrt(len(mine)))


def test_drawing_at_once_has_the_return_of_the_original():
    total, _, length, won = play(lambda obs, _: np.full(len(obs), DRAW), 20_000)
    assert total == pytest.approx(-231.7)  # 3 + 0.3 and the whole price: 100 + 135
    assert (length == 1).all() and not won.any()


def test_a_game_against_the_weakest_enemies_can_be_won():
    total, _, length, won = play(sensible, 100, {"difficulty": 0.0})
    assert won.all() and total.min() > 1_500
    assert (length < 65).all() and (length > 50).all()  # a delayed heal makes more than one tick


# ------------------------------------------------------------------------- as gymnasium has them


def test_gymnasiums_checker_finds_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("NumberGame-v1").unwrapped)


def test_one_game_equals_a_batch_of_one():
    one, batch = gym.make("NumberGame-v1"), gym.make_vec("NumberGame-v1", 1)
    random, over = np.random.default_rng(0), False
    obs, info = one.reset(seed=5)
    obs_of_one, infos = batch.reset(seed=5)
    for _ in range(300):
        assert obs.tolist() == obs_of_one[0].tolist() and info["tier"] == infos["tier"][0]
        action = uniform(obs_of_one, random)
        obs_of_one, reward, terminated, _, infos = batch.step(action)
        if over:
            (obs, info), paid, over = one.reset(), 0.0, False
        else:
            obs, paid, over, truncated, info = one.step(action[0])
            assert not truncated
        assert paid == reward[0] and over == terminated[0]


def test_a_seed_decides_all_games_and_later_resets_continue_its_generator():
    def run(seed):
        env, random, seen = gym.make_vec("NumberGame-v1", 4), np.random.default_rng(0), []
        for again in (seed, None):
            obs, _ = env.reset(seed=again)
            for _ in range(40):
                obs, reward, *_ = env.step(uniform(obs, random))
                seen.append([*obs.ravel(), *reward])
        return np.array(seen)

    np.testing.assert_array_equal(run(3), run(3))
    assert not np.array_equal(run(3), run(4))
    assert not np.array_equal(run(3)[:40], run(3)[40:])


def test_a_game_with_its_own_seed_equals_the_game_of_a_single_environment():
    batch = gym.make_vec("NumberGame-v1", 3, vectorization_mode="vector_entry_point")
    seen, _ = batch.reset(seed=[5, 6, 7])
    game = gym.make("NumberGame-v1")
    alone, _ = game.reset(seed=6)
    for _ in range(60):
        np.testing.assert_array_equal(seen[1], alone)
        seen, reward, over, _, _ = batch.step(np.array([3, 2, 0]))
        alone, paid, ended, _, _ = game.step(2)
        assert (reward[1], over[1]) == (paid, ended)
        if ended:
            seen, *_ = batch.step(np.array([3, 2, 0]))
            alone, _ = game.reset()
    batch.reset(seed=1)  # one seed for all takes the games' own away
    other = gym.make_vec("NumberGame-v1", 3, vectorization_mode="vector_entry_point")
    other.reset(seed=1)
    actions = np.array([2, 2, 2])
    np.testing.assert_array_equal(batch.step(actions)[0], other.step(actions)[0])


def test_info_says_whether_a_game_was_won():
    games = gym.make_vec("NumberGame-v1", 64, vectorization_mode="vector_entry_point")
    random = np.random.default_rng(0)
    obs, info = games.reset(seed=0, options={"difficulty": 0.5})
    assert not info["won"].any()
    wins = losses = 0
    for _ in range(300):
        obs, reward, over, _, info = games.step(sensible(obs, random))
        np.testing.assert_array_equal(info["won"], reward == 400)
        wins, losses = wins + info["won"].sum(), losses + (over & ~info["won"]).sum()
    assert wins > 20 and losses > 20


def test_a_game_does_not_depend_on_the_actions_of_other_games():
    def run(others):
        env = gym.make_vec("NumberGame-v1", 3)
        env.reset(seed=0)
        seen = [env.step(np.array([2, others, others]))[0] for _ in range(100)]
        return np.array(seen)

    calm, drawing = run(2), run(DRAW)
    np.testing.assert_array_equal(calm[:, 0], drawing[:, 0])
    assert not np.array_equal(calm[:, 1], drawing[:, 1])


def test_a_game_that_is_over_starts_again_on_the_next_step_with_any_action():
    env = gym.make_vec("NumberGame-v1", 3, vectorization_mode="vector_entry_point")
    assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
    start, _ = env.reset(seed=0)
    obs, _, terminated, _, _ = env.step(np.array([DRAW, 2, DRAW]))
    assert terminated.tolist() == [True, False, True]
    assert obs[0, 5] == 1 and obs[0, 0] < 1  # the last observation, not the first of the next game
    obs, reward, terminated, _, _ = env.step(np.full(3, DRAW))
    assert terminated.tolist() == [False, True, False]
    assert reward[[0, 2]].tolist() == [0, 0]
    np.testing.assert_array_equal(obs[[0, 2]], start[[0, 2]])


def test_a_game_that_is_over_asks_for_a_reset():
    env = NumberGame()
    env.reset(seed=0)
    env.step(DRAW)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(2)


def test_the_id_resolves_in_every_process_and_is_listed():
    assert "NumberGame-v1" in registry.known()
    assert registry.describe("NumberGame-v1").action.n == 4
    with pytest.raises(UserError, match="Nearest: NumberGame-v1"):
        registry.describe("NumbrGame-v1")
    code = "import gymnasium; gymnasium.make('dreamfleet.envs.number_game:NumberGame-v1').reset()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_line_of_text_shows_the_game():
    env = gym.make("NumberGame-v1", render_mode="ansi")
    env.reset(seed=0)
    assert "hp 11.0 ██████████" in env.render() and "last: -" in env.render()
    env.step(DRAW)
    assert "progress  1.0/65" in env.render() and "last: draw" in env.render()
    two = gym.make_vec("NumberGame-v1", 2, render_mode="ansi")
    two.reset(seed=0)
    assert len(two.render()) == 2


# -------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(("tier", "low"), [(0, 1.7), (1, 2.4), (2, 3.1)])
def test_the_option_tier_holds_until_the_next_reset(tier, low):
    env = gym.make_vec("NumberGame-v1", 50)
    for options, expected in (({"tier": tier}, {tier}), (None, {0, 1, 2, BETA})):
        _, info = env.reset(seed=0, options=options)
        kinds = set(info["tier"].tolist())
        for _ in range(3):
            *_, info = env.step(np.full(50, DRAW))
            kinds |= set(info["tier"].tolist())
        assert kinds == expected
    env.reset(options={"tier": tier})
    blows = env.unwrapped._games.damage[:, :3]
    assert low <= blows.min() and blows.max() <= low + 0.7


def test_a_lower_difficulty_narrows_the_damage_range_from_above():
    env = gym.make_vec("NumberGame-v1", 2_000)
    for difficulty, high in ((1.0, 3.8), (1 / 3, 2.4), (0, 1.7)):
        env.reset(seed=0, options={"difficulty": difficulty})
        blows = env.unwrapped._games.damage
        assert blows.min() >= 1.7 and blows.max() == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tier": 3}, 'option "tier" must be 0, 1, 2 or "beta"; found 3'),
        ({"tier": [0]}, r"found \[0\]"),
        ({"difficulty": 1.5}, 'option "difficulty" must be a number from 0 to 1; found 1.5'),
        ({"difficulty": float("nan")}, "found nan"),
        ({"difficulty": "hard"}, "found 'hard'"),
        ({"teir": 1}, 'option "teir" of NumberGame unknown. Nearest: tier.'),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options, message):
    with pytest.raises(UserError, match=message):
        NumberGame().reset(options=options)
