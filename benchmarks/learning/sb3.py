"""Trains model-free baselines of Stable-Baselines3 (SB3) with the tuned settings of its RL Zoo.

    pip install stable-baselines3        # the extra `peers`
    python benchmarks/learning/sb3.py --env CartPole-v1 --seeds 3

The baselines are DQN on CartPole-v1 and SAC on Pendulum-v1. Finished seeds are not trained again.
The settings come from DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml and sac.yml, at commit 22e3ff2.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, as in our own runs
sys.path.insert(0, str(Path(__file__).parents[2]))

import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.learning.curves import write_record
from benchmarks.learning.report import report
from benchmarks.processes import RESULTS
from dreamfleet.actors.episodes import summary
from dreamfleet.actors.evaluator import play
from dreamfleet.core.config import TrainConfig
from dreamfleet.core.types import Agent, Array, Batch, Event, State
from dreamfleet.envs.vector import GymVector
from dreamfleet.runtime.run_folder import versions

EVAL_EVERY = 500  # environment steps
EVAL_EPISODES = 100


@dataclass(frozen=True)
class Baseline:
    """An algorithm of SB3 (Stable-Baselines3), its settings, and its number of training steps."""

    algorithm: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the baseline in records, such as `sb3-dqn`."""
        return f"sb3-{self.algorithm.lower()}"


BASELINES = {
    "CartPole-v1": Baseline(
        "DQN",
        steps=50_000,
        settings={
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "gamma": 0.99,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    ),
    # The Zoo trains for 20,000 steps. No setting of SAC depends on the number of steps.
    "Pendulum-v1": Baseline("SAC", steps=10_000, settings={"learning_rate": 1e-3}),
}


class Greedy:
    """Wraps a model of Stable-Baselines3 as an agent of ours, so that our code can evaluate it."""

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model, self._space = model, model.action_space

    def initial_state(self, n: int) -> State:
        return None

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        action, _ = self._model.predict(rows["obs"], deterministic=not explore)
        return self._scaled(action), state, {}

    def _scaled(self, action: Array) -> Array:
        """Returns continuous actions scaled to [-1, 1], and discrete actions unchanged.

        Our evaluator expects continuous actions in [-1, 1].
        """
        if not hasattr(self._space, "low"):
            return action
        low, high = self._space.low, self._space.high
        return 2 * (action - low) / (high - low) - 1


class Recorder(BaseCallback):
    """A callback of SB3 (Stable-Baselines3) that evaluates the model every EVAL_EVERY steps.

    `events` collects evaluations and training episodes, in the format of the metrics of our own
    runs.
    """

    def __init__(self, env_id: str, seed: int) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._env_id, self._seed = env_id, seed
        self._began = time.monotonic()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:  # added by the Monitor wrapper of SB3
                ended = {"return": float(info["episode"]["r"]), "length": info["episode"]["l"]}
                self._record({"kind": "episode", **ended})
        if self.num_timesteps % EVAL_EVERY == 0:
            began = time.monotonic()
            eval_seed = 1_000_000 * (self._seed + 1) + self.num_timesteps
            env = GymVector.to_play(self._env_id, EVAL_EPISODES)
            agent = cast(Agent, Greedy(self.model))  # has all methods that `play` calls
            played = play(env, agent, EVAL_EPISODES, eval_seed, TrainConfig().eval_steps)
            figures = summary(played)
            self._record({"kind": "eval", **figures, "took_s": time.monotonic() - began})
        return True

    def _record(self, event: Event) -> None:
        wall_s = time.monotonic() - self._began
        self.events.append({**event, "env_steps": self.num_timesteps, "wall_s": wall_s})


def train(env: str, seed: int, baseline: Baseline) -> list[Event]:
    """Trains a baseline of SB3 (Stable-Baselines3) with one seed.

    Returns its evaluations and its training episodes as events.
    """
    model = getattr(stable_baselines3, baseline.algorithm)(
        "MlpPolicy", env, seed=seed, device="cpu", **baseline.settings
    )
    recorder = Recorder(env, seed)
    model.learn(baseline.steps, callback=recorder)
    return recorder.events


def provenance(env: str, seed: int, baseline: Baseline) -> Event:
    """Returns how a baseline was trained with one seed: method, command, versions, CPU count."""
    return {
        "method": baseline.name,
        "env": env,
        "seed": seed,
        "command": f"python benchmarks/learning/sb3.py --env {env}",
        "stable-baselines3": stable_baselines3.__version__,
        **{name: versions()[name] for name in ("python", "torch")},
        "cpus": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--env", choices=BASELINES, default="CartPole-v1")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds: 0, 1, … (default 3)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/ENV")
    args = parser.parse_args()
    baseline, out = BASELINES[args.env], args.out or RESULTS / args.env
    for seed in range(args.seeds):
        path = out / baseline.name / f"seed-{seed}.jsonl"
        if not path.is_file():
            about = provenance(args.env, seed, baseline)
            write_record(about, train(args.env, seed, baseline), path)
        print(f"seed {seed}: {path}", flush=True)
    print(report(args.env, out))


if __name__ == "__main__":
    main()
