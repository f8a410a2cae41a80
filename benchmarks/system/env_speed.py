"""Measures how many steps per second an environment makes with random actions, in one process.

    python benchmarks/system/env_speed.py PixelCatch-v1 --num-envs 64

Prints the steps per second and the steps per second of CPU time, each as the median of five
measurements, and the processor. Use a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.checkouts.launch import processor
from dreamfleet.envs.vector import GymVector

REPETITIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("env")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    args = parser.parse_args()
    per_second, per_cpu_second = zip(*measure(args.env, args.num_envs, args.seconds), strict=True)
    print(
        f"{args.env}, {args.num_envs} environments: {statistics.median(per_second):,.0f} steps/s, "
        f"{statistics.median(per_cpu_second):,.0f} per second of CPU time, {processor()}"
    )


def measure(env_id: str, num_envs: int, seconds: float) -> list[tuple[float, float]]:
    """Returns pairs: environment steps per second, and per second of CPU time of all threads.

    seconds: the length of each of the five measurements. Resets are included.
    """
    env, rng = GymVector(env_id, num_envs, seed=0), np.random.default_rng(0)
    action, shape = env.spec.action, (100, num_envs, *env.spec.action.shape)
    actions = rng.integers(action.n, size=shape) if action.discrete else rng.uniform(-1, 1, shape)
    env.reset()
    found = []
    for _ in range(REPETITIONS):
        start, cpu, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            env.step(actions[steps % 100])
            steps += num_envs
        found.append((steps / (time.perf_counter() - start), steps / (time.process_time() - cpu)))
    env.close()
    return found


if __name__ == "__main__":
    main()
