"""N gymnasium environments stepped together, as rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from core.errors import EnvironmentFault, UserError
from core.types import Array, Batch
from envs import registry, spaces


class GymVector:
    """The `VectorEnv` over gymnasium: final observations kept, truncation told from termination.

    It steps a plain list: no slower with all checks than gymnasium's SyncVectorEnv without, which
    would broadcast an observation of a wrong shape in silence. The rows are those of its NEXT_STEP
    mode. Whoever breaks the contract is named with its index and its last action.
    `video_dir`: film every episode of environment 0 into that folder.
    """

    def __init__(
        self, env_id: str, num_envs: int, seed: int, video_dir: Path | None = None
    ) -> None:
        self._envs = [registry.make(env_id) for _ in range(num_envs)]
        if video_dir is not None:
            self._envs[0] = _filmed(env_id, self._envs[0], video_dir)
        self.num_envs = num_envs
        self.spec = registry.spec_of(env_id, self._envs[0])
        self._decode = spaces.decoder(self._envs[0].action_space)
        self._dtype = np.dtype(self.spec.obs.dtype)
        # Each environment is seeded once; later resets go on from its own generator.
        self._seeds: list[int | None] = (
            np.random.SeedSequence(seed).generate_state(num_envs).tolist()
        )
        self._ended = np.ones(num_envs, bool)

    def reset(self) -> Batch:
        """Start all episodes. → rows without actions, (N, …)."""
        self._ended = np.ones(self.num_envs, bool)
        return self._advance([None] * self.num_envs)

    def step(self, action: Array) -> Batch:
        """Act (N, …) → rows (N, …). Where the previous row was `last`, reset and ignore the action.

        Raises EnvironmentFault when an environment returns NaN, or a wrong shape or dtype; what the
        environment itself raises passes through.
        """
        return self._advance(self._decode(action))

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _advance(self, action: Any) -> Batch:
        n, first = self.num_envs, self._ended
        shape, dtype = self.spec.obs.shape, self._dtype
        obs = np.empty((n, *shape), dtype)
        reward = np.zeros(n, np.float32)
        terminal, truncated = np.zeros(n, bool), np.zeros(n, bool)
        for i, (env, starts) in enumerate(zip(self._envs, first.tolist(), strict=True)):
            if starts:
                seen, _ = env.reset(seed=self._seeds[i])
                self._seeds[i] = None
            else:
                seen, reward[i], terminal[i], truncated[i], _ = env.step(action[i])
            seen = np.asarray(seen)
            if seen.shape != shape or not (seen.dtype == dtype or self._becomes(seen.dtype)):
                found = f"an observation {seen.dtype} {seen.shape}"
                raise self._fault(i, f"{found} where {dtype} {shape} was declared,", action)
            obs[i] = seen

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

    def _becomes(self, found: np.dtype[Any]) -> bool:
        """Numbers of any kind may become float32; into uint8 they would wrap around."""
        return self._dtype != np.uint8 and np.can_cast(found, self._dtype, "same_kind")

    def _fault(self, i: int, what: str, action: Any) -> EnvironmentFault:
        after = "reset" if self._ended[i] else f"action {action[i]}"
        return EnvironmentFault(f"{self.spec.env_id}[{i}] returned {what} after {after}")


def _filmed(env_id: str, env: gym.Env[Any, Any], folder: Path) -> gym.Env[Any, Any]:
    modes = env.metadata.get("render_modes") or ()
    if "rgb_array" not in modes:
        found = ", ".join(modes) or "none"
        raise UserError(
            f'env "{env_id}" cannot be filmed: it lacks render mode rgb_array (has: {found})'
        )
    env.close()
    env = registry.make(env_id, render_mode="rgb_array")
    name = env_id.replace("/", "-").replace(":", "-")
    try:
        return gym.wrappers.RecordVideo(env, str(folder), lambda episode: True, name_prefix=name)
    except gym.error.DependencyNotInstalled as missing:
        raise UserError("filming needs moviepy. Run: pip install moviepy") from missing
