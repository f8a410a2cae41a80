"""A server, writer or sampler of Reverb, run as a process of its own by the replay benchmark.

    PYTHON benchmarks/replay/reverb_process.py KIND server
    PYTHON benchmarks/replay/reverb_process.py KIND writer|sampler PORT

PYTHON is an interpreter with dm-reverb and TensorFlow. KIND is `transitions`, or `sequences` (64
pixel frames each, in batches of 16).

A server prints its port and runs until its stdin ends. A writer or sampler prints `ready`. For each
number n that it reads from stdin, it does its work n times and prints `done`.

The fastest parts of Reverb are used: its structured writer for transitions, and its
`TrajectoryDataset` for samples. Reverb's trajectory writer in Python reached 0.8 times the rate of
the structured writer. `Client.sample` reached 0.3 times the rate of `TrajectoryDataset` for
transitions, and 0.6 times for frames.
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
MIN_SIZE = 1024  # transitions before the first sample
SLACK = 4096  # largest difference between samples and inserts
CAPACITY = 100_000  # transitions
FRAMES, LENGTH, SEQUENCES = 8192, 64, 16  # stored; frames of a sequence; sequences of a batch
IN_FLIGHT = 512  # items that are sent but not confirmed; more were not faster

Work = Callable[[int], None]  # a function of n that does n units of work


def main() -> None:
    kind, role, *rest = sys.argv[1:]
    if role == "server":
        server = reverb.Server([{"transitions": transitions, "sequences": sequences}[kind]()])
        send(server.port)
        sys.stdin.read()
        return
    work = ROLES[kind, role](f"localhost:{rest[0]}")
    send("ready")
    for line in sys.stdin:
        work(int(line))
        send("done")


def send(what: Any) -> None:
    """Prints the value `what` as a line of JSON, for the process that started this one."""
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
    """Returns a prioritized Reverb table of transitions that allows one sample per insert.

    The number of samples may differ from the number of inserts by up to SLACK.
    """
    return reverb.Table(
        "transitions",
        sampler=reverb.selectors.Prioritized(0.6),
        remover=reverb.selectors.Fifo(),
        max_size=CAPACITY,
        rate_limiter=reverb.rate_limiters.SampleToInsertRatio(1.0, MIN_SIZE, float(SLACK)),
        signature=TRANSITION,
    )


def write_transitions(address: str) -> Work:
    """Returns a function of n that writes n batches of BATCH transitions to a Reverb server.

    address: `host:port` of the server. All transitions belong to one episode that never ends.
    """
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
    """Yields random steps (observation, action, reward, terminal) of an episode that never ends."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((1024, 24), dtype=np.float32)
    reward = rng.standard_normal(1024, dtype=np.float32)
    steps = [
        {"obs": o, "action": np.int64(1), "reward": r, "terminal": np.bool_(False)}
        for o, r in zip(obs, reward, strict=True)
    ]
    return itertools.cycle(steps)


def sample_transitions(address: str) -> Work:
    """Returns a function of n that samples n batches of transitions from a Reverb server.

    address: `host:port` of the server.
    """
    return sampling(address, "transitions", BATCH)


# ------------------------------------------------------------------------------ sequences


def sequences() -> reverb.Table:
    """Returns a Reverb table of frame sequences, sampled uniformly and without a rate limit."""
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
    """Returns a function of n that writes n sequences of LENGTH frames to a Reverb server.

    address: `host:port` of the server. Sequences do not overlap. Each sequence is sent as one chunk
    (Reverb's unit of compression).
    """
    writer = reverb.Client(address).trajectory_writer(num_keep_alive_refs=LENGTH)
    for name in ("obs", "reward"):
        writer.configure((name,), num_keep_alive_refs=LENGTH, max_chunk_length=LENGTH)
    tiles = np.random.default_rng(0).integers(0, 256, (1024, 16, 16, 3), dtype=np.uint8)
    # Reverb sends compressed frames, and random pixels would halve its rate. Tiles of one colour
    # compress to a seventh, like the frames of CarRacing.
    frames = tiles.repeat(4, axis=1).repeat(4, axis=2)

    def work(n: int) -> None:
        for i in range(n):
            for t in range(LENGTH):
                frame = frames[(i * LENGTH + t) % len(frames)]
                writer.append({"obs": frame, "reward": np.float32(0)})
            history = writer.history
            item = {name: history[name][-LENGTH:] for name in ("obs", "reward")}
            writer.create_item("sequences", 1.0, item)
            writer.flush()

    return work


def sample_sequences(address: str) -> Work:
    """Returns a function of n that samples n batches of 16 sequences of 64 frames from Reverb.

    address: `host:port` of the Reverb server.
    """
    return sampling(address, "sequences", SEQUENCES)


def sampling(address: str, table: str, batch: int) -> Work:
    """Returns a function of n that samples n batches from a Reverb table, as numpy arrays.

    address: `host:port` of the Reverb server. table: name of the table. batch: number of items in a
    batch.
    """
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
