"""One process of the Reverb peer, in an interpreter that has dm-reverb and TensorFlow.

    PYTHON benchmarks/replay/reverb_process.py KIND server
    PYTHON benchmarks/replay/reverb_process.py KIND writer|sampler PORT

KIND: transitions, or sequences of 16 × 64 pixel frames. A server says its port and lives until its
stdin ends. The others say `ready`; each further line of stdin is how much to do, answered `done`.
Nothing here is shared with our own code: that interpreter may lack all that ours needs.

Of what Reverb offers the fastest was taken: its structured writer, which makes items in C++ (from
Python, the trajectory writer reached 0.8 times as much), and its data set (`Client.sample` reached
0.3 times as much for transitions, 0.6 for frames). A second writer process added nothing.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import reverb
import tensorflow as tf

BATCH = 256  # transitions
LEAST, SLACK = 1024, 4096  # transitions before the first sample; how far apart the two may drift
CAPACITY = 100_000  # transitions
FRAMES, LENGTH, SEQUENCES = 8192, 64, 16  # held, of a sequence, of a batch
IN_FLIGHT = 512  # items: more of them made it no faster

Work = Callable[[int], None]


def main() -> None:
    kind, role, *rest = sys.argv[1:]
    if role == "server":
        server = reverb.Server([{"transitions": transitions, "sequences": sequences}[kind]()])
        say(server.port)
        sys.stdin.read()
        return
    work = ROLES[kind, role](f"localhost:{rest[0]}")
    say("ready")
    for line in sys.stdin:
        work(int(line))
        say("done")


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


# ------------------------------------------------------------------------------ transitions

STEP = {
    "obs": tf.TensorSpec([24], tf.float32),
    "action": tf.TensorSpec([], tf.int64),
    "reward": tf.TensorSpec([], tf.float32),
    "terminal": tf.TensorSpec([], tf.bool),
}
TRANSITION = {**STEP, "next_obs": STEP["obs"]}


def transitions() -> reverb.Table:
    """Prioritized; as many samples as inserts, up to SLACK."""
    return reverb.Table(
        "transitions",
        sampler=reverb.selectors.Prioritized(0.6),
        remover=reverb.selectors.Fifo(),
        max_size=CAPACITY,
        rate_limiter=reverb.rate_limiters.SampleToInsertRatio(1.0, LEAST, float(SLACK)),
        signature=TRANSITION,
    )


def write_transitions(address: str) -> Work:
    """n batches' worth of steps of one endless episode, an item of priority 1 for each."""
    reference = reverb.structured_writer.create_reference_step(dict.fromkeys(STEP))
    pattern = {
        **{name: reference[name][-2] for name in ("obs", "action")},
        **{name: reference[name][-1] for name in ("reward", "terminal")},
        "next_obs": reference["obs"][-1],
    }
    config = reverb.structured_writer.create_config(pattern, "transitions", [])
    writer = reverb.Client(address).structured_writer([config])
    steps = endless()
    writer.append(next(steps))

    def work(batches: int) -> None:
        for _ in range(batches):
            for _ in range(BATCH):
                writer.append(next(steps))
            writer.flush(block_until_num_items=IN_FLIGHT)
        writer.flush()

    return work


def endless() -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((1024, 24), dtype=np.float32)
    reward = rng.standard_normal(1024, dtype=np.float32)
    steps = [
        {"obs": o, "action": np.int64(1), "reward": r, "terminal": np.bool_(False)}
        for o, r in zip(obs, reward, strict=True)
    ]
    return itertools.cycle(steps)


def sample_transitions(address: str) -> Work:
    """n batches."""
    return drawn(address, "transitions", BATCH)


# ------------------------------------------------------------------------------ sequences


def sequences() -> reverb.Table:
    return reverb.Table(
        "sequences",
        sampler=reverb.selectors.Uniform(),
        remover=reverb.selectors.Fifo(),
        max_size=FRAMES // LENGTH,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature={
            "obs": tf.TensorSpec([LENGTH, 64, 64, 3], tf.uint8),
            "reward": tf.TensorSpec([LENGTH], tf.float32),
        },
    )


def write_sequences(address: str) -> Work:
    """n sequences that do not overlap, each one chunk: the cheapest there is to send."""
    writer = reverb.Client(address).trajectory_writer(num_keep_alive_refs=LENGTH)
    for name in ("obs", "reward"):
        writer.configure((name,), num_keep_alive_refs=LENGTH, max_chunk_length=LENGTH)
    tiles = np.random.default_rng(0).integers(0, 256, (1024, 16, 16, 3), dtype=np.uint8)
    # Tiles of one colour compress sevenfold, as CarRacing's pictures do: Reverb ships compressed
    # frames, and noise would halve its rate.
    frames = tiles.repeat(4, axis=1).repeat(4, axis=2)

    def work(n: int) -> None:
        for i in range(n):
            for t in range(LENGTH):
                frame = frames[(i * LENGTH + t) % len(frames)]
                writer.append({"obs": frame, "reward": np.float32(0)})
            of = writer.history
            item = {name: of[name][-LENGTH:] for name in ("obs", "reward")}
            writer.create_item("sequences", 1.0, item)
            writer.flush()

    return work


def sample_sequences(address: str) -> Work:
    """n batches of 16 × 64 frames."""
    return drawn(address, "sequences", SEQUENCES)


def drawn(address: str, table: str, batch: int) -> Work:
    """n batches, as numpy, of the data set that Reverb recommends for training."""
    data = reverb.TrajectoryDataset.from_table_signature(
        address, table, max_in_flight_samples_per_worker=2 * batch
    )
    batches = data.batch(batch).as_numpy_iterator()

    def work(n: int) -> None:
        for _ in range(n):
            next(batches)

    return work


ROLES: dict[tuple[str, str], Callable[[str], Work]] = {
    ("transitions", "writer"): write_transitions,
    ("transitions", "sampler"): sample_transitions,
    ("sequences", "writer"): write_sequences,
    ("sequences", "sampler"): sample_sequences,
}

if __name__ == "__main__":
    main()
