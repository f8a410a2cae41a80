"""The same question for model-free peers: Stable-Baselines3 with the RL Zoo's tuned settings.

    pip install stable-baselines3        # the extra `peers`; matplotlib is the extra `bench`
    python benchmarks/learning/sb3.py --env CartPole-v1 --seeds 3

Every look plays 100 fresh greedy episodes by our own evaluator. Finished seeds are not run again.
Settings: DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml and sac.yml at commit 22e3ff2.
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

from benchmarks.learning.curves import keep
from benchmarks.learning.report import report
from benchmarks.processes import ROOT
from dreamfleet.actors.episodes import summary
from dreamfleet.actors.evaluator import play
from dreamfleet.core.config import TrainConfig
from dreamfleet.core.types import Agent, Array, Batch, Event, State
from dreamfleet.envs.vector import GymVector
from dreamfleet.runtime.run_folder import versions

LOOK_EVERY = 500  # env steps
EPISODES = 100  # a look


@dataclass(frozen=True)
class Peer:
    """An algorithm, its settings and for how many env steps it trains."""

    algorithm: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"sb3-{self.algorithm.lower()}"


PEERS = {
    "CartPole-v1": Peer(
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
    # The Zoo trains for 20,000 steps; nothing here depends on how many are still to come.
    "Pendulum-v1": Peer("SAC", steps=10_000, settings={"learning_rate": 1e-3}),
}


class Greedy:
    """An SB3 model as the agent that our evaluator asks."""

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model, self._space = model, model.action_space

    def initial_state(self, n: int) -> State:
        return None

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        action, _ = self._model.predict(rows["obs"], deterministic=not explore)
        return self._unit(action), state, {}

    def _unit(self, action: Array) -> Array:
        """The environment's own actions → ours, in [-1, 1] where they are continuous."""
        if not hasattr(self._space, "low"):
            return action
        low, high = self._space.low, self._space.high
        return 2 * (action - low) / (high - low) - 1


class Looks(BaseCallback):
    """Evaluates every LOOK_EVERY steps, and takes note of the training episodes."""

    def __init__(self, env_id: str, seed: int) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._env_id, self._seed = env_id, seed
        self._began = time.monotonic()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:  # SB3's Monitor wrapper
                ended = {"return": float(info["episode"]["r"]), "length": info["episode"]["l"]}
                self._note({"kind": "episode", **ended})
        if self.num_timesteps % LOOK_EVERY == 0:
            began = time.monotonic()
            fresh = 1_000_000 * (self._seed + 1) + self.num_timesteps
            env = GymVector.to_play(self._env_id, EPISODES)
            agent = cast(Agent, Greedy(self.model))  # all that playing asks of one
            figures = summary(play(env, agent, EPISODES, fresh, TrainConfig().eval_steps))
            self._note({"kind": "eval", **figures, "took_s": time.monotonic() - began})
        return True

    def _note(self, event: Event) -> None:
        spent = time.monotonic() - self._began
        self.events.append({**event, "env_steps": self.num_timesteps, "wall_s": spent})


def train(env: str, seed: int, peer: Peer) -> list[Event]:
    """One seed from beginning to end → its events."""
    model = getattr(stable_baselines3, peer.algorithm)(
        "MlpPolicy", env, seed=seed, device="cpu", **peer.settings
    )
    looks = Looks(env, seed)
    model.learn(peer.steps, callback=looks)
    return looks.events


def about(env: str, seed: int, peer: Peer) -> Event:
    """How a seed was made."""
    return {
        "method": peer.name,
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
    parser.add_argument("--env", choices=PEERS, default="CartPole-v1")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, … (default 3)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/ENV")
    args = parser.parse_args()
    peer, out = PEERS[args.env], args.out or ROOT / "benchmarks" / "results" / args.env
    for seed in range(args.seeds):
        path = out / peer.name / f"seed-{seed}.jsonl"
        if not path.is_file():
            keep(about(args.env, seed, peer), train(args.env, seed, peer), path)
        print(f"seed {seed}: {path}", flush=True)
    print(report(args.env, out))


if __name__ == "__main__":
    main()
