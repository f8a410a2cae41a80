from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Consumer, EpisodeStats, Space, TableSpec
from dreamfleet.replay_server.recent_returns import RecentReturns, merged
from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.replay_server.shards import NearShard, ShardedReplay, shard_tables

FLAG, NUMBER = Space((), "bool"), Space((), "float32")


def spec(**changes: str) -> TableSpec:
    columns = {"first": FLAG, "last": FLAG, "score": NUMBER}
    return TableSpec(1000, columns, {"policy": Consumer(4)}, **changes)


def rows(rng: np.random.Generator, steps: int) -> dict[str, np.ndarray]:
    """Returns `steps` rows of one stream, with episodes of random length. The last row ends one."""
    last = rng.random((1, steps)) < 0.2
    last[:, -1] = True
    first = np.concatenate([[[True]], last[:, :-1]], 1)
    return {"first": first, "last": last, "score": rng.normal(size=(1, steps)).astype(np.float32)}


@pytest.mark.parametrize("shards", [1, 2])
def test_samples_have_the_mean_return_of_the_last_hundred_episodes(shards):
    """The mean is right after a restore, too. Each of several shards has a hundred episodes."""
    rng, tables = np.random.default_rng(0), {"real": spec(episode_return="score")}

    def build() -> tuple[list[NearShard], ShardedReplay]:
        parts = [NearShard(shard_tables(tables, shards), seed) for seed in range(shards)]
        return parts, ShardedReplay(parts, tables, 0)

    parts, replay = build()
    returns: list[list[float]] = [[] for _ in parts]
    for i in range(40):
        chunk, shard = rows(rng, 30), i % shards
        assert parts[shard].add("real", chunk, np.arange(1))
        returns[shard] += chunk["score"][chunk["last"]].tolist()
    other, again = build()
    for before, after in zip(parts, other, strict=True):
        after.restore(before.state())
    for one in (replay, again):
        played = one.sample("real", "policy").episode_stats
        assert played.episodes == sum(map(len, returns))
        assert played.mean_return == pytest.approx(np.mean([shard[-100:] for shard in returns]))


def test_without_a_return_column_samples_have_empty_statistics():
    replay = ReplayServer({"real": spec()}, 0)
    assert replay.add("real", rows(np.random.default_rng(0), 30), np.arange(1))
    assert replay.sample("real", "policy").episode_stats == EpisodeStats()


def test_an_unknown_return_column_is_refused():
    with pytest.raises(UserError, match="no column 'scores'; the nearest is 'score'"):
        ReplayServer({"real": spec(episode_return="scores")}, 0)


def test_outliers_are_left_out_of_the_mean_return():
    played = RecentReturns()
    played.add(np.array([10.0, 20.0, 1e20, -3e6, 30.0]))
    assert played.summary() == EpisodeStats(5, 20.0)
    sparse = RecentReturns()
    sparse.add(np.array([0.0, 0.0, 0.0, 100.0]))
    assert sparse.summary() == EpisodeStats(4, 25.0)


def test_statistics_of_shards_are_weighted_by_their_episodes():
    assert merged([EpisodeStats(30, 1.0), EpisodeStats(10, 5.0), EpisodeStats()]) == EpisodeStats(
        40, 2.0
    )
