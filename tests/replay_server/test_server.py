from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.core.selectors import Prioritized
from dreamfleet.core.types import ChunkId, Consumer, QueueSpec, Replay, Sample, TableSpec
from dreamfleet.replay_server import ReplayServer
from tests.replay_server.model import Episodes, spec


def server(seed: int = 0) -> ReplayServer:
    tables: dict[str, TableSpec | QueueSpec] = {
        "real": spec(64, 4.0, world=Consumer(4, 3), policy=Consumer(8, 1, Prioritized())),
        "other": spec(32, policy=Consumer(4, 2)),
        "dream": QueueSpec(2),
    }
    return ReplayServer(tables, seed)


def fill(replay: Replay, table: str, episodes: Episodes) -> None:
    last = np.zeros((2, 6), bool)
    last[:, 3] = True
    assert replay.add(table, episodes.chunk([4, 2], last), np.array([4, 2]))


def test_tables_are_addressed_by_name() -> None:
    replay = server()
    fill(replay, "real", Episodes())
    sample = replay.sample("real", "world")
    assert isinstance(sample, Sample) and sample.data["obs"].shape == (4, 3, 2)
    assert replay.sample("other", "policy") is None
    replay.update("real", sample.keys, {"priority": np.ones(4)})
    stats = replay.stats()
    assert stats["real/samples_world"] == 1 and stats["real/stored"] == 12
    assert stats["real/ratio_world"] == pytest.approx(1 / 9)


def test_env_steps_count_the_agent_steps_of_the_real_table() -> None:
    replay = server()
    fill(replay, "real", Episodes())
    fill(replay, "other", Episodes())
    assert replay.stats()["env_steps"] == 10


def test_errors_for_unknown_names_list_the_known_names() -> None:
    replay = server()
    with pytest.raises(KeyError, match="dream, other, real"):
        replay.sample("reel", "world")
    with pytest.raises(KeyError, match="policy, world"):
        replay.sample("real", "learner")


def test_a_queue_returns_the_same_objects_once_and_in_order() -> None:
    replay = server()
    batches = [{"latent": object()} for _ in range(3)]
    assert [replay.add("dream", batch) for batch in batches] == [True, True, False]
    assert replay.sample("dream", "policy") is batches[0]
    assert replay.add("dream", batches[2])
    assert replay.sample("dream", "policy") is batches[1]
    assert replay.sample("dream", "policy") is batches[2]
    assert replay.sample("dream", "policy") is None
    assert replay.stats()["dream/inserted"] == replay.stats()["dream/samples"] == 3


def test_calls_that_a_table_or_queue_does_not_support_raise() -> None:
    replay = server()
    with pytest.raises(ValueError, match="streams"):
        replay.add("real", Episodes().chunk([0], [False]))
    with pytest.raises(ValueError, match="is a queue"):
        replay.update("dream", np.array([0]), {"priority": np.array([1.0])})
    with pytest.raises(UserError, match="capacity"):
        ReplayServer({"dream": QueueSpec(0)}, 0)


def test_a_restored_server_continues_draw_for_draw() -> None:
    replay, episodes = server(), Episodes()
    fill(replay, "real", episodes)
    replay.sample("real", "policy")
    replay.add("dream", {"latent": object()})
    restored = server(seed=5)
    restored.restore(replay.state())
    for _ in range(5):
        for consumer in ("world", "policy"):
            ours, theirs = replay.sample("real", consumer), restored.sample("real", consumer)
            assert isinstance(ours, Sample) and isinstance(theirs, Sample)
            np.testing.assert_equal(ours.data, theirs.data)
            np.testing.assert_array_equal(ours.prob, theirs.prob)
    stats = restored.stats()
    assert stats["dream/inserted"] == stats["dream/discarded"] == 1  # queued batches are not saved
    assert stats["env_steps"] == 10


def test_a_state_of_other_tables_is_refused() -> None:
    with pytest.raises(UserError, match=r"\['real'\]"):
        server().restore({"real": {}})


def test_each_table_draws_from_its_own_generator() -> None:
    both: dict[str, TableSpec | QueueSpec] = {
        "a": spec(64, x=Consumer(8)),
        "b": spec(64, x=Consumer(8)),
    }
    one, other = ReplayServer(both, 0), ReplayServer({"b": both["b"]}, 0)
    fill(one, "a", Episodes())
    fill(one, "b", Episodes())
    fill(other, "b", Episodes())
    first, second, third = one.sample("a", "x"), one.sample("b", "x"), other.sample("b", "x")
    assert isinstance(first, Sample) and isinstance(second, Sample) and isinstance(third, Sample)
    assert first.keys.tolist() != second.keys.tolist() == third.keys.tolist()


# ------------------------------------------------------------------------------ idempotence


def offer(replay: ReplayServer, episodes: Episodes, chunk_id: ChunkId) -> bool:
    """Adds the next two rows of stream 7 to table "real", as the chunk with id `chunk_id`."""
    return replay.add("real", episodes.chunk([7], np.zeros((1, 2), bool)), np.array([7]), chunk_id)


def test_a_chunk_that_arrives_twice_is_stored_once() -> None:
    replay, episodes = server(), Episodes()
    chunk = episodes.chunk([7], np.zeros((1, 2), bool))
    for _ in range(3):
        assert replay.add("real", chunk, np.array([7]), ChunkId(0, 0, 0))
    assert offer(replay, episodes, ChunkId(0, 0, 1))
    stats = replay.stats()
    assert (stats["env_steps"], stats["real/inserted"]) == (4, 4)
    assert (stats["real/duplicates"], stats["real/outdated"]) == (2, 0)


def test_chunks_of_a_replaced_actor_process_are_not_stored() -> None:
    replay = server()
    assert offer(replay, Episodes(), ChunkId(0, 0, 0))
    fresh = Episodes().chunk([8], np.zeros((1, 2), bool))
    assert replay.add("real", fresh, np.array([8]), ChunkId(0, 1, 0))
    assert replay.add("real", fresh, np.array([7]), ChunkId(0, 0, 1))
    assert replay.stats()["real/outdated"] == 1 and replay.stats()["env_steps"] == 4
    other = Episodes().chunk([9], np.zeros((1, 2), bool))
    assert replay.add("real", other, np.array([9]), ChunkId(1, 0, 0))  # another actor
    assert replay.stats()["env_steps"] == 6 and replay.actors("real") == 2


def test_a_chunk_that_was_refused_can_be_added_later() -> None:
    replay = ReplayServer({"real": spec(64, 1.0, x=Consumer(4, samples_per_step=2.0))}, 0)
    episodes = Episodes()
    assert offer(replay, episodes, ChunkId(0, 0, 0))  # earns two samples
    chunk = episodes.chunk([7], np.zeros((1, 2), bool))
    assert not replay.add("real", chunk, np.array([7]), ChunkId(0, 0, 1))
    broken = {**chunk, "obs": np.full_like(chunk["obs"], np.nan)}
    assert replay.sample("real", "x") is not None
    with pytest.raises(EnvironmentFault, match="not finite"):
        replay.add("real", broken, np.array([7]), ChunkId(0, 0, 1))
    assert replay.add("real", chunk, np.array([7]), ChunkId(0, 0, 1))
    assert replay.stats()["real/duplicates"] == 0 and replay.stats()["env_steps"] == 4


def test_stored_chunks_are_recognised_after_a_restore() -> None:
    replay, episodes = server(), Episodes()
    chunk = episodes.chunk([7], np.zeros((1, 2), bool))
    assert replay.add("real", chunk, np.array([7]), ChunkId(3, 1, 5))
    restored = server(seed=5)
    restored.restore(replay.state())
    assert restored.add("real", chunk, np.array([7]), ChunkId(3, 1, 5))
    assert restored.stats()["env_steps"] == 2 and restored.stats()["real/duplicates"] == 1
