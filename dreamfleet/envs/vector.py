"""N gymnasium environments stepped together, as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import gymnasium as gym
import numpy as np

from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.core.types import Array, Batch
from dreamfleet.envs import registry, spaces

AT_ONCE: Final = 100  # environments that are stepped one by one and play together
BATCHED_AT_ONCE: Final = 1_000  # the same where one call steps them all


class GymVector:
    """The `VectorEnv` over gymnasium: final observations kept, truncation told from termination.

    It steps a plain list: no slower with all checks than gymnasium's SyncVectorEnv without, which
    would broadcast an observation of a wrong shape in silence. The rows are those of its NEXT_STEP
    mode. Whoever breaks the contract is named with its index and its last action.
    Where metadata says `batched`, all are stepped at once in the vectorised form the id is
    registered with, whose infos are numbers (N,) and become `info`.
    options: arguments of each environment. video_dir: film every episode of environment 0 there; of
    a batch, in an environment by itself that its seed and actions make the same.
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
            env = _filmed(env_id, env, video_dir, options)
        self.num_envs = num_envs
        self.spec = registry.spec_of(env_id, env)
        self._decode = spaces.decoder(env.action_space)
        together = env.metadata.get("batched")
        self._batch: Any = _batched(env_id, num_envs, options) if together else None
        self._film: Any = env if together and video_dir is not None else None
        copies = 0 if together else num_envs - 1
        self._envs = [env, *(registry.make(env_id, **options) for _ in range(copies))]
        self.info: Batch = {}
        self._dtype = np.dtype(self.spec.obs.dtype)
        # Each environment is seeded once, a batch with the first seed; later resets go on from its
        # own generator.
        self._seeds: list[int | None] = (
            np.random.SeedSequence(seed).generate_state(num_envs).tolist()
        )
        self._batch_seed: int | list[int] | None = self._seeds[0]
        self._ended = np.ones(num_envs, bool)

    @classmethod
    def to_play(cls, env_id: str, episodes: int) -> Self:
        """As many environments as play so many episodes, from seeds still to come."""
        env = registry.make(env_id)
        most = BATCHED_AT_ONCE if env.metadata.get("batched") else AT_ONCE
        env.close()
        return cls(env_id, min(episodes, most), seed=0)

    def reset(self, seeds: Sequence[int] | None = None) -> Batch:
        """Start all episodes, each from a seed of its own where (N,) of them are given.

        → rows without actions, (N, …). A batched form takes them as a list.
        """
        if seeds is not None:
            self._seeds = [int(seed) for seed in seeds]
            self._batch_seed = [int(seed) for seed in seeds]
        self._ended = np.ones(self.num_envs, bool)
        return self._advance(None)

    def step(self, action: Array) -> Batch:
        """Act (N, …) → rows (N, …). Where the previous row was `last`, reset and ignore the action.

        Raises EnvironmentFault when an environment returns NaN, or a wrong shape or dtype; what the
        environment itself raises passes through.
        """
        return self._advance(self._decode(action))

    def state(self) -> dict[str, Any]:
        """What a batched form's own `state` says; empty where it has none."""
        return self._batch.state() if hasattr(self._batch, "state") else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` said."""
        if state:
            self._batch.restore(state)

    def close(self) -> None:
        for env in self._envs:
            env.close()
        if self._batch is not None:
            self._batch.close()

    def _advance(self, action: Any) -> Batch:
        first = self._ended
        step = self._step_each if self._batch is None else self._step_batch
        obs, reward, terminal, truncated = step(action)
        for name, values in (("observation", obs), ("reward", reward)):
            finite = np.isfinite(values)
            if not finite.all():
                i = int(np.argwhere(~finite)[0, 0])
                raise self._fault(i, f"a {name} of {values[~finite][0]}", action)
        self._ended = terminal | truncated
        return {
            "obs": obs,
            "reward": reward,
            "first": first,
            "last": self._ended,
            "terminal": terminal,
        }

    def _step_each(self, action: Any) -> tuple[Array, Array, Array, Array]:
        n, shape = self.num_envs, self.spec.obs.shape
        obs = np.empty((n, *shape), self._dtype)
        reward = np.zeros(n, np.float32)
        terminal, truncated = np.zeros(n, bool), np.zeros(n, bool)
        for i, (env, starts) in enumerate(zip(self._envs, self._ended.tolist(), strict=True)):
            if starts:
                seen, info = env.reset(seed=self._seeds[i])
                self._seeds[i] = None
            else:
                seen, reward[i], terminal[i], truncated[i], info = env.step(action[i])
            obs[i] = self._checked(seen, shape, i, action)
            if "unshaped_return" in info:
                unshaped = self.info.setdefault("return", np.zeros(n))
                unshaped[i] = info["unshaped_return"]
        return obs, reward, terminal, truncated

    def _step_batch(self, action: Array | None) -> tuple[Array, Array, Array, Array]:
        n = self.num_envs
        if self._film is not None:
            if self._ended[0]:
                seed = self._batch_seed
                self._film.reset(seed=seed[:1] if isinstance(seed, list) else seed)
            else:
                assert action is not None
                self._film.step(action[0])
        if action is None:
            seen, self.info = self._batch.reset(seed=self._batch_seed)
            self._batch_seed = None
            reward, terminal, truncated = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
        else:
            seen, reward, terminal, truncated, self.info = self._batch.step(action)
        obs = self._checked(seen, (n, *self.spec.obs.shape), 0, action)
        return obs.astype(self._dtype), reward.astype(np.float32), terminal, truncated

    def _checked(self, seen: Any, shape: tuple[int, ...], i: int, action: Any) -> Array:
        seen = np.asarray(seen)
        if seen.shape != shape or not (seen.dtype == self._dtype or self._becomes(seen.dtype)):
            found = f"an observation {seen.dtype} {seen.shape}"
            raise self._fault(i, f"{found} where {self._dtype} {shape} was declared,", action)
        return seen

    def _becomes(self, found: np.dtype[Any]) -> bool:
        """Numbers of any kind may become float32; into uint8 they would wrap around."""
        return self._dtype != np.uint8 and np.can_cast(found, self._dtype, "same_kind")

    def _fault(self, i: int, what: str, action: Any) -> EnvironmentFault:
        after = "reset" if self._ended[i] else f"action {action[i]}"
        return EnvironmentFault(f"{self.spec.env_id}[{i}] returned {what} after {after}")


def _batched(
    env_id: str, num_envs: int, options: Mapping[str, Any]
) -> gym.vector.VectorEnv[Any, Any, Any]:
    env = gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **options)
    assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP, env
    return env


def _filmed(
    env_id: str, env: gym.Env[Any, Any], folder: Path, options: Mapping[str, Any]
) -> gym.Env[Any, Any]:
    modes = env.metadata.get("render_modes") or ()
    if "rgb_array" not in modes:
        found = ", ".join(modes) or "none"
        raise UserError(
            f'env "{env_id}" cannot be filmed: it lacks render mode rgb_array (has: {found})'
        )
    env.close()
    env = registry.make(env_id, render_mode="rgb_array", **options)
    name = env_id.replace("/", "-").replace(":", "-")
    try:
        return gym.wrappers.RecordVideo(env, str(folder), lambda episode: True, name_prefix=name)
    except gym.error.DependencyNotInstalled as missing:
        raise UserError("filming needs moviepy. Run: pip install moviepy") from missing
