"""NumberGame: survive an enemy whose strength is hidden. docs/number-game.md has the rules.

The rules come from the repository skjazz/Model-based-DQN. The code plays N games at a time; a
single game is a batch with N = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from dreamfleet.core.errors import UserError, nearest
from dreamfleet.core.types import Array
from dreamfleet.envs.game_batch import GameBatch, OneGame
from dreamfleet.envs.progressive import Progressive

ENEMIES: Final = (0, 1, 2, "beta")  # kinds of enemy: three tiers, and one of the whole range
BETA: Final = ENEMIES.index("beta")
ACTIONS: Final = ("light, light, heavy", "light, heavy", "delayed", "draw")
DELAYED, DRAW = 2, 3

DAMAGE: Final = (1.7, 3.8)  # of an enemy's blow
CAP, START_HP, OVERFULL = 10.0, 11.0, 10.5  # hit points
MAX_MANA, LIGHT_COST = 220.0, 96.0
LIGHT_HEAL, HEAVY_HEAL = 1.89, 1.84
GOAL: Final = 65.0  # progress; every step makes at least 1, so no game is longer than 65 steps

LIGHTS: Final = np.array([2, 1, 0, 0])  # light heals of each action
HEAL_PAYS: Final = np.array([0.0, 0.0, 10.0, 0.0])  # reward of its heavy or delayed heal
OVERHEAL_PAYS: Final = np.array([-2.0, -2.0, 5.0, 0.0])  # the same at full health
# Cost of a draw by the fraction of hit points or mana that is left, with linear interpolation.
DRAW_SHARE: Final = (0.0, 0.001, 0.01, 0.1, 0.4, 0.5, 1.0)
DRAW_COSTS: Final = (0.0, -5.0, -5.0, -10.0, -65.0, -95.0, -100.0)

# Mean returns at which the damage range widens: three quarters of the return of a hand-written
# policy of two rules on the ranges 1.7 to 2.4 and 1.7 to 3.1.
THRESHOLDS: Final = (1_100.0, 450.0)

LUCK: Final = 7  # uniform random numbers for the start of a game; a step uses the first five


class Games:
    """The state of N games of NumberGame, and the rules that change it.

    The class draws no random numbers. Its methods take them as the argument `luck`, numbers uniform
    in [0, 1).
    """

    def __init__(self, n: int) -> None:
        self.hp = np.full(n, START_HP)
        self.old_hp = np.full(n, CAP)  # before the last tick
        self.mana = np.full(n, MAX_MANA)
        self.progress = np.zeros(n)
        self.resist = np.zeros(n)  # ticks of better regeneration left
        self.last = np.full(n, -1)  # action
        self.kind = np.zeros(n, np.int64)  # of the enemy: its tier, or BETA
        self.damage = np.zeros((n, 4))  # the enemy's blows; a tier uses the first three, BETA four
        self.arcane = np.zeros(n)  # mana regained in a tick
        self.won = np.zeros(n, bool)  # by the last step
        self._everyone = np.arange(n)

    def start(self, rows: Array, luck: Array, tier: int | None, difficulty: float) -> None:
        """Starts k games against enemies of kind `tier`, or of any kind if `tier` is None.

        The blows of tiers 0, 1 and 2 come from the lower, middle and upper third of the damage
        range. The fourth kind, BETA, has blows from the whole range. difficulty: 0 to 1, the
        fraction of the damage range in use.

        rows: (k,), the indices of the games. luck: (7, k), numbers uniform in [0, 1).
        """
        self.hp[rows], self.old_hp[rows], self.mana[rows] = START_HP, CAP, MAX_MANA
        self.progress[rows], self.resist[rows], self.last[rows] = 0.0, 0.0, -1
        self.won[rows] = False
        self.arcane[rows] = 15 + np.floor(3 * luck[0])
        kind = np.where(luck[1] < 0.25, BETA, (3 * luck[2]).astype(np.int64))
        if tier is not None:
            kind[:] = tier
        u = luck[3:]
        arcsine = np.sin(np.pi / 2 * u) ** 2  # Beta(1/2, 1/2)
        share = np.where(kind == BETA, arcsine, (kind + u) / 3)  # (4, k)
        low, high = DAMAGE
        self.damage[rows] = low + (high - low) * difficulty * share.T
        self.kind[rows] = kind

    def play(self, action: Array, luck: Array) -> tuple[Array, Array]:
        """Takes one step of N games with actions (N,).

        Returns the rewards (N,) f64, and whether each game is over (N,).

        luck: (7, N), numbers uniform in [0, 1). The first two numbers decide the enemy's blow and
        the regeneration in the tick (unit of game time) that ends the step. The next three decide
        the short tick of the action "delayed heal". The last two numbers are not used.
        """
        before = self.hp.copy()
        reward = 4 * np.minimum(before - 5, 0)
        reward += self._light(LIGHTS[action] >= 1)
        reward += self._light(LIGHTS[action] >= 2)

        delayed = np.flatnonzero(action == DELAYED)
        self._tick(delayed, 0.1 + 0.2 * luck[2, delayed], luck[3:5, delayed])
        reward += self._heal(action)

        draw = action == DRAW
        reward[draw] += _draw_cost(self.hp[draw] / self.old_hp[draw])
        reward[draw] += 1.35 * _draw_cost(self.mana[draw] / MAX_MANA)
        self.resist[draw] = 2
        self._tick(self._everyone, 1.0, luck[:2])
        self.resist[delayed] = 2
        reward += 3 * (action >= DELAYED)

        reward += 5 * np.maximum(self.hp - before, 0) + 0.3 * self.progress
        lost = self.hp <= 0
        won = (self.progress >= GOAL) & ~lost & ~draw
        reward = np.where(lost, -500 + 8 * self.progress, reward)
        reward = np.where(won, 750 + 12 * self.hp, reward)
        self.last, self.won = action.copy(), won
        return np.clip(reward, -600, 400), lost | draw | won

    def observe(self) -> Array:
        """Returns the observations (N, 7) f32 of N games.

        The numbers are described in `bounds`.
        """
        obs = np.empty((len(self.hp), 7), np.float32)
        obs[:, 0] = self.hp / 10
        obs[:, 1] = self.mana / MAX_MANA
        obs[:, 2:6] = self.last[:, None] == np.arange(4)
        obs[:, 6] = (self.hp - self.old_hp) / 10
        return obs

    def _tick(self, rows: Array, time: Any, luck: Array) -> None:
        """Plays a tick in k games: the enemy strikes, then hp (hit points) and mana recover.

        rows: (k,), the indices of the games. time: the length of the tick, where 1 is a full tick.
        luck: (2, k), numbers uniform in [0, 1).
        """
        hp = self.hp[rows]
        self.progress[rows] += time
        self.old_hp[rows] = hp
        draws_from = np.where(self.kind[rows] == BETA, 4, 3)
        blow = self.damage[rows, (luck[0] * draws_from).astype(np.int64)]
        rage = np.maximum(1 + 0.025 * (5 - hp), 1)
        resist = self.resist[rows]
        regain = np.where(resist > 0, 1.5 * (0.145 + 0.055 * luck[1]), 0.06 + 0.02 * luck[1])
        self.hp[rows] = np.minimum(hp - blow * rage * time + regain * time, CAP)
        self.resist[rows] = np.maximum(resist - time, 0)
        self.mana[rows] = np.minimum(self.mana[rows] + self.arcane[rows] * time, MAX_MANA)

    def _light(self, on: Array) -> Array:
        """Applies a light heal in the games where `on` is True. Returns the rewards (N,).

        In a game without enough mana, the heal costs one hit point, and the reward is negative.
        """
        paid = on & (self.mana > LIGHT_COST)
        broke = on ^ paid
        self.hp = np.where(paid, np.minimum(self.hp + LIGHT_HEAL, CAP), self.hp - broke)
        self.mana -= LIGHT_COST * paid
        return -60.0 * broke

    def _heal(self, action: Array) -> Array:
        """Applies the last heal of each action (heavy or delayed). Returns the rewards (N,).

        action: (N,). The action "draw", which ends a game, has no heal.
        """
        full = self.hp >= CAP
        healed = np.where(full, OVERFULL, np.minimum(self.hp + HEAVY_HEAL, CAP))
        self.hp = np.where(action == DRAW, self.hp, healed)
        return np.where(full, OVERHEAL_PAYS[action], HEAL_PAYS[action])


def _draw_cost(share: Array) -> Array:
    return np.interp(share, DRAW_SHARE, DRAW_COSTS)  # clips to [0, 1]


# ------------------------------------------------------------------------------ the environments


class NumberGameVector(GameBatch):
    """N games of NumberGame as one batched environment.

    The options of a reset hold until the next reset: "tier" (0, 1, 2 or "beta") and "difficulty"
    (from 0 to 1). A reset raises UserError for any other option or value. infos: "tier" (N,), the
    kind of enemy; "won" (N,), whether the last step won the game.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, render_mode: str | None = None) -> None:
        actions: gym.spaces.Discrete = gym.spaces.Discrete(len(ACTIONS))
        super().__init__(num_envs, bounds(), actions, LUCK, render_mode)
        self.difficulty = 1.0  # of the games that start from now on
        self._tier: int | None = None
        self._games = Games(num_envs)

    def configure(self, options: Mapping[str, Any]) -> None:
        self._tier, self.difficulty = _chosen(options)

    def begin(self, rows: Array, luck: Array) -> None:
        self._games.start(rows, luck, self._tier, self.difficulty)

    def play(self, action: Array, luck: Array) -> tuple[Array, Array]:
        return self._games.play(action, luck)

    def observe(self) -> Array:
        return self._games.observe()

    def facts(self) -> dict[str, Any]:
        return {"tier": self._games.kind.copy(), "won": self._games.won.copy()}

    def render(self) -> tuple[Any, ...] | None:
        """Returns one line of text about each game in render mode "ansi", else None."""
        if self.render_mode is None:
            return None
        return tuple(_line(self._games, i) for i in range(self.num_envs))


class NumberGame(OneGame):
    """One game of NumberGame as a gymnasium environment.

    render_mode: "ansi" for a line of text, or None. progressive: whether enemies become stronger as
    the mean return rises. The options of a reset are those of `NumberGameVector`.
    """

    metadata: dict[str, Any] = {**NumberGameVector.metadata, "batched": True}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, progressive: bool = False) -> None:
        super().__init__(batched(1, render_mode, progressive), render_mode)


def batched(
    num_envs: int = 1, render_mode: str | None = None, progressive: bool = False
) -> VectorEnv[Any, Any, Any]:
    """Returns N games of NumberGame as one batched environment.

    render_mode: "ansi" for lines of text, or None. progressive: whether enemies become stronger as
    the mean return rises.
    """
    games = NumberGameVector(num_envs, render_mode)
    return Progressive(games, THRESHOLDS) if progressive else games


def bounds() -> gym.spaces.Box:
    """Returns the observation space of NumberGame, with the bounds of each of its seven numbers.

    The numbers are hp / 10 (hit points), mana / 220, the last action (one-hot, four numbers), and
    the change of hp in the last tick (unit of game time) / 10. The lowest hp follows from the worst
    step at almost 0 hp: two light heals without mana (each costs one hit point), a heavy heal, and
    the strongest blow.
    """
    weakest = -2 + HEAVY_HEAL
    change = -DAMAGE[1] * (1 + 0.025 * (5 - weakest)) + 0.06
    low = [(weakest + change) / 10, 15 / MAX_MANA, *[0] * 4, change / 10]
    high = [START_HP / 10, 1, *[1] * 4, (START_HP - CAP) / 10]
    return gym.spaces.Box(np.array(low, np.float32), np.array(high, np.float32))


def _chosen(options: Mapping[str, Any]) -> tuple[int | None, float]:
    """Returns the kind of enemy (None for any kind) and the difficulty in the options of a reset.

    Raises UserError for an unknown option or a wrong value.
    """
    for key in options:
        if key not in ("tier", "difficulty"):
            hint = nearest(str(key), ("tier", "difficulty"))
            raise UserError(f'option "{key}" of NumberGame unknown.{hint}')
    tier, difficulty = options.get("tier"), options.get("difficulty", 1.0)
    if tier is not None and tier not in ENEMIES:
        raise UserError(f'option "tier" must be 0, 1, 2 or "beta"; found {tier!r}')
    if not isinstance(difficulty, (int, float)) or not 0 <= difficulty <= 1:
        raise UserError(f'option "difficulty" must be a number from 0 to 1; found {difficulty!r}')
    return None if tier is None else ENEMIES.index(tier), float(difficulty)


def _line(games: Games, i: int) -> str:
    hp, mana, progress = games.hp[i], games.mana[i], games.progress[i]
    last = ACTIONS[games.last[i]] if games.last[i] >= 0 else "-"
    return (
        f"progress {progress:4.1f}/{GOAL:.0f}   hp {hp:4.1f} {_bar(hp / CAP)}"
        f"   mana {mana:3.0f} {_bar(mana / MAX_MANA)}   last: {last}"
    )


def _bar(share: float) -> str:
    filled = round(10 * min(max(share, 0), 1))
    return "█" * filled + "░" * (10 - filled)


gym.register("NumberGame-v1", f"{__name__}:NumberGame", vector_entry_point=f"{__name__}:batched")
