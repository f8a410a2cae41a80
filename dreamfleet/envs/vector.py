"""Steps N gymnasium environments together, and returns their rows (observation, reward, flags)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import gymnasium as gym
import numpy as np

from dreamfleet.core import seeding
from dreamfleet.core.config import unshaped
from dreamfleet.core.errors import EnvironmentFault
from dreamfleet.core.own_code import interrupts
from dreamfleet.core.types import Array, Batch
from dreamfleet.envs import contract, registry, spaces
from dreamfleet.envs.film import Film, filmed_env
from dreamfleet.envs.shaping import RewardFloor

AT_ONCE: Final = 100  # most environments of an evaluation, when they are stepped one by one
BATCHED_AT_ONCE: Final = 1_000  # the same, when one call steps all environments


class GymVector:
    """Steps N gymnasium environments together, with the interface `VectorEnv` of this project.

    An episode's final observation is a row of its own, and the next step resets the environment, as
    in gymnasium's NEXT_STEP mode. Errors name the index of the environment and its last action.
    `info` holds facts about the episodes that end with the newest rows.

    If the environment's metadata has `batched`, gymnasium's `make_vec` builds one batched
    environment, and one call steps all N. Otherwise the environments are a plain list: gymnasium's
    SyncVectorEnv broadcasts an observation of a wrong shape without an error.

    options: arguments of each environment. video_dir: a folder for films of environment 0. Only
    episodes that begin with a `reset` with seeds are filmed.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        seed: int,
        options: Mapping[str, Any] | None = None,
        video_dir: Path | None = None,
    ) -> None:
        options = options or {}
        env = registry.make(env_id, **options)
        if video_dir is not None:
            env = filmed_env(env_id, env, video_dir, dict(options))
        self.num_envs = num_envs
        self.spec = registry.spec_of(env_id, env)
        self._encode = spaces.Encoder(env_id, env.observation_space)
        self._decode = spaces.decoder(env.action_space)
        together = env.metadata.get("batched")
        self._batch: Any = _batched(env_id, num_envs, options) if together else None
        self._film = None if video_dir is None else Film(env, env_id, video_dir)
        self._filmed: Any = env if together and video_dir is not None else None
        self._episode = 0  # the number of the next filmed episode
        copies = 0 if together else num_envs - 1
        self._envs = [env, *(registry.make(env_id, **options) for _ in range(copies))]
        self.info: Batch = {}
        # The newest N values of the column `obs`, before the conversion to float32. Other columns
        # are images, which are not converted.
        self.seen: Any = []
        self._columns = {name: (it.shape, it.dtype) for name, it in self.spec.observations.items()}
        # Each environment is seeded once, and a batch once with the first seed. Later resets draw
        # from the environment's own generator.
        self._seeds: list[int | None] = [*seeding.derive(seed, num_envs)]
        self._batch_seed: int | list[int] | None = self._seeds[0]
        self._ended = np.ones(num_envs, bool)

    @classmethod
    def to_play(cls, env_id: str, episodes: int, options: Mapping[str, Any] | None = None) -> Self:
        """Returns environments for an evaluation of `episodes` episodes.

        Pass seeds to their `reset`. options: arguments of each environment. Arguments that shape
        rewards are ignored, so that returns are sums of the original rewards.
        """
        options = unshaped(options or {})
        env = registry.make(env_id, **options)
        most = BATCHED_AT_ONCE if env.metadata.get("batched") else AT_ONCE
        registry.close(env)
        return cls(env_id, min(episodes, most), seed=0, options=options)

    def reset(self, seeds: Sequence[int] | None = None) -> Batch:
        """Starts an episode in each environment. Returns the first rows (N, …) of these episodes.

        The rows have all columns but the action. seeds: one per environment; with None, the random
        generators of the environments continue.
        """
        if seeds is not None:
            self._seeds = [int(seed) for seed in seeds]
            self._batch_seed = [int(seed) for seed in seeds]
        self._ended = np.ones(self.num_envs, bool)
        rows = self._advance(None)
        if self._film is not None and seeds is not None:
            self._film.begin(self._episode)
            self._episode += self.num_envs
        return rows

    def step(self, action: Array) -> Batch:
        """Takes one action (N, …) per environment. Returns the next rows (N, …).

        The rows have all columns but the action. An environment whose previous row ended an episode
        (`last`) is reset instead, and its action is ignored. Actions must be finite.

        Raises EnvironmentFault if an environment returns values outside its spaces, or if it raises
        SystemExit or KeyboardInterrupt.
        """
        rows = self._advance(self._decode(action))
        if self._film is not None and not rows["first"][0]:
            self._film.add_frame()
            if rows["last"][0]:
                self._film.finish()
        return rows

    def films(self) -> list[Path]:
        """Returns the files of all films. Ends the film of an episode that is still running."""
        if self._film is None:
            return []
        self._film.finish("cut-short")
        return self._film.files

    def state(self) -> dict[str, Any]:
        """Returns the state that outlasts an episode, such as the level of a curriculum.

        This is the result of the batched environment's own method `state`, or {} if it has none.
        """
        return self._batch.state() if hasattr(self._batch, "state") else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what the method `state` returned, such as the level of a curriculum."""
        if state:
            self._batch.restore(state)

    def close(self) -> None:
        """Closes all environments. Exceptions that an environment raises are ignored."""
        if self._film is not None:
            self._film.discard()
        for env in (*self._envs, *([] if self._batch is None else [self._batch])):
            registry.close(env)

    def _advance(self, action: Any) -> Batch:
        first = self._ended
        step = self._step_each if self._batch is None else self._step_batch
        with np.errstate():  # an environment's np.seterr ends here
            columns, paid, terminal, truncated = step(action)
        with np.errstate(over="ignore"):  # the next lines refuse numbers that are too large
            reward = paid.astype(np.float32)
        obs = columns["obs"]
        for name, seen, taken in (("an observation", self.seen, obs), ("a reward", paid, reward)):
            if not np.isfinite(taken).all():
                raise self._not_finite(name, seen, taken, action)
        self._ended = terminal | truncated
        return {
            **columns,
            "reward": reward,
            "first": first,
            "last": self._ended,
            "terminal": terminal,
        }

    def where(self, place: Sequence[int]) -> str:
        """Names the part of a Dict or Tuple observation to which a number belongs.

        place: the index of the number in the encoded observation. Returns "" if the observation has
        no parts.
        """
        return self._encode.where(int(place[0])) if len(place) == 1 else ""

    # ------------------------------------------------------------------------------ one by one

    def _step_each(self, action: Any) -> tuple[Batch, Array, Array, Array]:
        n = self.num_envs
        columns = {
            name: np.empty((n, *shape), dtype) for name, (shape, dtype) in self._columns.items()
        }
        reward = np.zeros(n)
        terminal, truncated = np.zeros(n, bool), np.zeros(n, bool)
        self.seen = [*range(n)]
        for i, starts in enumerate(self._ended.tolist()):
            if starts:
                seen, info = self._reset(i, action)
            else:
                seen, paid, over, cut, info = self._step(i, action)
                reward[i] = self._number(i, paid, action)
                terminal[i] = self._flag(i, "terminated", over, action)
                truncated[i] = self._flag(i, "truncated", cut, action)
                if terminal[i] or truncated[i]:
                    self._tell(i, contract.facts(info))
            env = self._envs[i]
            if isinstance(env, RewardFloor):
                self._tell(i, {"return": env.unshaped_return})
            found = self._encoded(i, seen, action)
            self.seen[i] = found["obs"]
            for name, value in found.items():
                column = columns[name]
                if value.dtype == column.dtype:
                    column[i] = value
                else:
                    with np.errstate(over="ignore"):
                        column[i] = value
        return columns, reward, terminal, truncated

    def _reset(self, i: int, action: Any) -> tuple[Any, Mapping[Any, Any]]:
        env, seed = self._envs[i], self._seeds[i]
        self._seeds[i] = None
        for values in self.info.values():
            values[i] = None
        if seed is not None:
            _seed(env, seed)
        result = self._call(i, action, env.reset, seed=seed)
        checked = contract.reset_result(result)
        if checked is None:
            found = f"{contract.described(result)} from reset, but {contract.RESET},"
            raise self._fault(i, found, action)
        return checked

    def _step(self, i: int, action: Any) -> tuple[Any, Any, Any, Any, Mapping[Any, Any]]:
        result = self._call(i, action, self._envs[i].step, action[i])
        checked = contract.step_result(result)
        if checked is None:
            found = f"{contract.described(result)} from step, but {contract.STEP},"
            raise self._fault(i, found, action)
        return checked

    def _tell(self, i: int, facts: Mapping[str, Any]) -> None:
        for name, value in facts.items():
            if name not in self.info:
                self.info[name] = np.full(self.num_envs, None, object)
            self.info[name][i] = value

    def _encoded(
        self, i: int, seen: Any, action: Any, lead: tuple[int, ...] = ()
    ) -> dict[str, Array]:
        """Returns the columns of an observation of environment `i`, or of a batch of observations.

        lead: (N,) for the observations of all environments, in which case `i` is 0.
        """
        try:
            return self._encode(seen, lead)
        except spaces.Mismatch as error:
            raise self._fault(i + error.index, str(error), action) from None

    def _number(self, i: int, value: Any, action: Any) -> float:
        found = contract.number(value)
        if found is None:
            raise self._fault(
                i, f"{contract.shown(value)} as its reward, which is no number,", action
            )
        return found

    def _flag(self, i: int, name: str, value: Any, action: Any) -> bool:
        found = contract.flag(value)
        if found is None:
            raise self._fault(
                i, f"{contract.shown(value)} as {name}, which must be True or False,", action
            )
        return found

    # ---------------------------------------------------------------------------- as one batch

    def _step_batch(self, action: Array | None) -> tuple[Batch, Array, Array, Array]:
        n = self.num_envs
        if self._filmed is not None:
            if self._ended[0]:
                seed = self._batch_seed
                self._filmed.reset(seed=seed[:1] if isinstance(seed, list) else seed)
            else:
                assert action is not None
                self._filmed.step(action[0])
        if action is None:
            seed = self._batch_seed
            self._batch_seed = None
            if seed is not None:
                _seed(self._batch, seed[0] if isinstance(seed, list) else seed)
            seen, info = self._call(0, action, self._batch.reset, seed=seed)
            paid, over, cut = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
        else:
            seen, paid, over, cut, info = self._call(0, action, self._batch.step, action)
        self.info = contract.batched_facts(info, n)
        found = self._encoded(0, seen, action, lead=(n,))
        self.seen = found["obs"]
        reward = self._column("rewards", paid, "biuf", action)
        terminal = self._column("terminated", over, "biu", action).astype(bool)
        truncated = self._column("truncated", cut, "biu", action).astype(bool)
        with np.errstate(over="ignore"):
            columns = {name: found[name].astype(it[1]) for name, it in self._columns.items()}
        return columns, reward, terminal, truncated

    def _column(self, name: str, values: Any, kinds: str, action: Any) -> Array:
        array = np.asarray(values)
        if array.shape != (self.num_envs,) or array.dtype.kind not in kinds:
            found = f"{name} {array.dtype} {array.shape}"
            raise self._fault(0, f"{found} where ({self.num_envs},) was due,", action)
        return array

    # ---------------------------------------------------------------------------------- faults

    def _call(
        self, i: int, action: Any, method: Callable[..., Any], *args: Any, **given: Any
    ) -> Any:
        """Calls a method of environment `i` and returns its result.

        Raises EnvironmentFault for an exception that would end the process, and for an exception
        that shows the interface of old Gym. action: the actions of all environments.
        """
        try:
            return method(*args, **given)
        except Exception as error:
            expected = contract.misunderstanding(error)
            if expected:
                what = f"another interface, as {expected} ({error}),"
                raise self._fault(i, what, action, verb="has") from error
            raise
        except BaseException as error:
            if interrupts(error):
                raise
            what = f"{type(error).__name__} {error}".strip()
            raise self._fault(i, what, action, verb="raised") from error

    def _not_finite(self, name: str, seen: Any, taken: Array, action: Any) -> EnvironmentFault:
        """Returns an EnvironmentFault that names the first number in `taken` that is not finite.

        name: what `taken` is, "an observation" or "a reward". seen: the same numbers before the
        conversion to float32.
        """
        i, *place = (int(index) for index in np.argwhere(~np.isfinite(taken))[0])
        value = np.asarray(seen[i])[tuple(place)]
        where = self.where(place) if place else ""
        why = ", which float32 cannot hold," if np.isfinite(value) else ""
        return self._fault(i, f"{name} of {value}{where}{why}", action)

    def _fault(self, i: int, what: str, action: Any, verb: str = "returned") -> EnvironmentFault:
        after = "reset" if self._ended[i] else f"action {' '.join(str(action[i]).split())}"
        return EnvironmentFault(f"{self.spec.env_id}[{i}] {verb} {what} after {after}")


def _seed(env: Any, seed: int) -> None:
    """Seeds the spaces and `np_random` of an environment, because its `reset` may not do so."""
    for owner in (env, env.unwrapped):
        for name in ("action_space", "observation_space"):
            space = getattr(owner, name, None)
            if isinstance(space, gym.Space):
                space.seed(seed)
    with contextlib.suppress(AttributeError):  # an environment may have made it read-only
        env.unwrapped.np_random = np.random.default_rng(seed)


def _batched(
    env_id: str, num_envs: int, options: Mapping[str, Any]
) -> gym.vector.VectorEnv[Any, Any, Any]:
    env = registry.guarded(
        env_id,
        options,
        lambda: gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **options),
    )
    assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP, env
    return env
