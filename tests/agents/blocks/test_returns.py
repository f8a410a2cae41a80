from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.returns import n_step, retrace
from dreamfleet.core.types import Array, Consumer, Space, TableSpec
from dreamfleet.replay_server.table import Table

GAMMA = 0.9


def draw(seed: int, B: int = 6, T: int = 9) -> dict[str, torch.Tensor]:
    """Returns random arguments (B, T) of `retrace`, for B windows of T rows."""
    rng = np.random.default_rng(seed)
    discount = GAMMA * (rng.random((B, T)) > 0.2)
    rows = {
        "reward": rng.normal(size=(B, T)),
        "discount": discount,
        "value": rng.normal(size=(B, T)),
        "q_taken": rng.normal(size=(B, T)),
        "trace_coefficient": rng.random((B, T)) * (rng.random((B, T)) > 0.2),
    }
    return {name: torch.tensor(value) for name, value in rows.items()}


# ------------------------------------------------------------------- against the definitions


@pytest.mark.parametrize("seed", range(5))
def test_retrace_is_the_sum_of_munos_equation_4(seed):
    """Each target is Q_t + sum_s (prod_{t<j<=s} d_j c_j) (r_{s+1} + d_{s+1} V_{s+1} - Q_s)."""
    rows = draw(seed)
    B, T = rows["reward"].shape
    r, d, v, q, c = (value.numpy() for value in rows.values())
    expected = np.zeros((B, T - 1))
    for b, t in itertools.product(range(B), range(T - 1)):
        total = q[b, t]
        for s in range(t, T - 1):
            factor = np.prod([d[b, j] * c[b, j] for j in range(t + 1, s + 1)])
            total += factor * (r[b, s + 1] + d[b, s + 1] * v[b, s + 1] - q[b, s])
        expected[b, t] = total
    np.testing.assert_allclose(retrace(**rows), expected, rtol=1e-12)


@pytest.mark.parametrize("terminal", [False, True])
def test_an_n_step_return_discounts_each_reward_by_its_step_and_stops_at_the_last_row(terminal):
    reward = torch.tensor([[9.0, 1.0, 2.0, 4.0, 8.0]] * 2)
    last = torch.tensor([[False] * 5, [False, False, True, False, False]])
    rewards, steps, discount = n_step(reward, last, last & terminal, 0.5)
    assert rewards.tolist() == [1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 8, 1 + 0.5 * 2]
    assert steps.tolist() == [4, 2]
    assert discount.tolist() == [0.5**4, 0.0 if terminal else 0.5**2]


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_retrace_on_the_policys_own_data_is_the_lambda_return(lam):
    """The λ-return is the weighted mean of n-step returns G(n): (1 - λ) sum_n λ^{n-1} G(n).

    The longest n-step return gets the rest of the weight. Source: Sutton & Barto, section 12.3.
    """
    rows = draw(0)
    rows["q_taken"] = rows["value"]
    rows["trace_coefficient"] = torch.full_like(rows["value"], lam)
    r, d, v = (rows[name].numpy() for name in ("reward", "discount", "value"))
    B, T = r.shape

    def n_step(b: int, t: int, n: int) -> float:
        total, factor = 0.0, 1.0
        for k in range(t + 1, t + n + 1):
            total += factor * r[b, k]
            factor *= d[b, k]
        return total + factor * v[b, t + n]

    expected = np.zeros((B, T - 1))
    for b, t in itertools.product(range(B), range(T - 1)):
        longest = T - 1 - t
        weights = [(1 - lam) * lam ** (n - 1) for n in range(1, longest)] + [lam ** (longest - 1)]
        expected[b, t] = sum(w * n_step(b, t, n + 1) for n, w in enumerate(weights))
    np.testing.assert_allclose(retrace(**rows), expected, rtol=1e-12)


def test_true_values_are_a_fixed_point_for_every_trace_coefficient():
    """In a deterministic chain with correct values V and Q, the targets equal the values."""
    rows = draw(1)
    T = rows["reward"].shape[1]
    value = rows["value"].clone()
    for t in range(T - 2, -1, -1):
        value[:, t] = rows["reward"][:, t + 1] + rows["discount"][:, t + 1] * value[:, t + 1]
    found = retrace(rows["reward"], rows["discount"], value, value, rows["trace_coefficient"])
    torch.testing.assert_close(found, value[:, :-1])


def test_a_trace_coefficient_of_zero_gives_the_one_step_return():
    rows = draw(2)
    rows["trace_coefficient"] = torch.zeros_like(rows["trace_coefficient"])
    one_step = rows["reward"] + rows["discount"] * rows["value"]
    torch.testing.assert_close(retrace(**rows), one_step[:, 1:])


def test_rows_after_a_trace_coefficient_of_zero_do_not_matter():
    rows, other = draw(3), draw(4)
    last = 4
    for name in rows:
        other[name][:, : last + 1] = rows[name][:, : last + 1]
    rows["trace_coefficient"][:, last] = other["trace_coefficient"][:, last] = 0
    found, other_found = retrace(**rows), retrace(**other)
    torch.testing.assert_close(found[:, :last], other_found[:, :last])
    assert not torch.isclose(found[:, last], other_found[:, last]).any()


# ---------------------------------------------------------------- windows of a real replay


class Episodes:
    """Random short episodes in several streams, as lists and in a small replay table.

    The table wraps around more than once.
    """

    def __init__(self, seed: int, window: int, streams: int = 3, capacity: int = 60) -> None:
        rng = np.random.default_rng(seed)
        flag, number = Space((), "bool"), Space((), "float32")
        columns = {
            "stream": Space((), "int64"),
            "index": Space((), "int64"),  # of the row in its stream
            "reward": number,
            "value": number,
            "first": flag,
            "last": flag,
            "terminal": flag,
        }
        spec = TableSpec(capacity, columns, {"policy": Consumer(6, window)})
        self.table = Table("real", spec, seed)
        self.rows: list[list[dict[str, float]]] = [[] for _ in range(streams)]
        left, first = np.zeros(streams, int), np.ones(streams, bool)
        for _ in range(30):
            chunk = []
            for _ in range(int(rng.integers(1, 7))):
                left = np.where(
                    first, rng.integers(1, 7, streams), left - 1
                )  # steps left in the episode
                last = left == 0
                chunk.append(
                    {
                        "stream": np.arange(streams),
                        "index": np.array([len(rows) for rows in self.rows]),
                        "reward": np.where(first, 0, rng.normal(size=streams)).astype(np.float32),
                        "value": rng.normal(size=streams).astype(np.float32),
                        "first": first,
                        "last": last,
                        "terminal": last & (rng.random(streams) < 0.5),
                    }
                )
                for stream, rows in enumerate(self.rows):
                    rows.append({name: value[stream] for name, value in chunk[-1].items()})
                first = last
            rows = {name: np.stack([row[name] for row in chunk], 1) for name in chunk[0]}
            assert self.table.add(rows, np.arange(streams))
        assert (
            self.table.stats()["evicted"] > capacity
        )  # the ring buffer wrapped around more than once

    def n_step(self, stream: int, index: int, n: int) -> float:
        """Returns the n-step return from row `index` of a stream, computed by a plain loop.

        The return is shorter if the episode ends earlier, and bootstraps unless the end is
        terminal.
        """
        total = 0.0
        for k in range(n):
            row = self.rows[stream][index + k + 1]
            total += GAMMA**k * row["reward"]
            if row["last"] or k == n - 1:
                return total + (0.0 if row["terminal"] else GAMMA ** (k + 1) * row["value"])
        raise AssertionError


@pytest.mark.parametrize("window", [2, 4, 9])
def test_returns_of_sampled_windows_agree_with_the_returns_of_the_episodes(window):
    """The episodes are short, some are truncated, some terminate, and the table wraps around."""
    episodes = Episodes(seed=window, window=window)
    met: set[str] = set()
    for _ in range(100):
        sample = episodes.table.sample("policy")
        assert sample is not None
        rows: dict[str, Array] = sample.data
        inside = torch.tensor(~rows["last"])
        value = torch.tensor(rows["value"])
        found = retrace(
            reward=torch.tensor(rows["reward"]),
            discount=GAMMA * torch.tensor(~rows["terminal"]),
            value=value,
            q_taken=value,
            trace_coefficient=inside.float(),
        )
        for b, t in np.argwhere(~rows["last"][:, :-1]):
            stream, index = rows["stream"][b, t], rows["index"][b, t]
            expected = episodes.n_step(stream, index, n=window - 1 - t)
            assert found[b, t] == pytest.approx(expected, abs=1e-5)
        met |= {"truncation"} if (rows["last"] & ~rows["terminal"])[:, 1:-1].any() else set()
        met |= {"termination"} if rows["terminal"][:, 1:-1].any() else set()
        met |= {"several episodes"} if (rows["first"][:, 1:].sum(1) > 1).any() else set()
    if window > 2:
        assert {"truncation", "termination"} <= met
    if window > 4:
        assert "several episodes" in met
