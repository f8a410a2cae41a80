from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.core.selectors import Mixture, Prioritized, Recency, ReturnDeviation, Uniform
from dreamfleet.core.types import Consumer, QueueSpec, Space, TableSpec
from dreamfleet.replay_server import budget
from dreamfleet.replay_server.table import Table
from tests.replay_server.model import COLUMNS, Episodes, spec

CONSUMERS = {
    "a": Consumer(2, 3, Prioritized(), context=2),
    "b": Consumer(2, 1, Mixture(((0.5, Uniform()), (0.3, Recency(9)), (0.2, ReturnDeviation())))),
}


def arrays(part: object, seen: set[int]) -> dict[int, int]:
    """Returns the sizes in bytes of all arrays that an object refers to, by the array's id.

    seen: ids of objects that were visited.
    """
    if id(part) in seen:
        return {}
    seen.add(id(part))
    if isinstance(part, np.ndarray):
        owner = part if part.base is None else part.base
        return {id(owner): owner.nbytes} if isinstance(owner, np.ndarray) else {}
    if isinstance(part, dict):
        inside = list(part.values())
    elif isinstance(part, list | tuple):
        inside = list(part)
    else:
        inside = list(vars(part).values()) if hasattr(part, "__dict__") else []
    return {key: size for each in inside for key, size in arrays(each, seen).items()}


@pytest.mark.parametrize("capacity", [50, 5_000, 70_000])
def test_a_table_takes_the_memory_that_it_reports(capacity: int) -> None:
    table = Table("real", spec(capacity, **CONSUMERS), 0)
    taken = sum(arrays(table, set()).values())
    assert table.nbytes <= taken <= table.nbytes + 2_000  # streams and other small things


@pytest.mark.parametrize("megabytes", [0.1, 0.7, 5])
def test_a_budget_allows_as_many_rows_as_fit(megabytes: float) -> None:
    table_spec = TableSpec(10**9, COLUMNS, CONSUMERS, max_bytes=int(megabytes * 1e6))
    table = Table("real", table_spec, 0)
    rows = table.capacity
    assert table.nbytes <= table_spec.max_bytes < budget.table_bytes(table_spec, rows + 1)
    episodes = Episodes()
    for _ in range(rows // 1_000 + 2):
        table.add(episodes.chunk([0], np.zeros(1_000)), np.array([0]))
    assert table.stats()["stored"] == rows


def test_the_capacity_limits_a_table_whose_budget_is_larger() -> None:
    table_spec = TableSpec(100, COLUMNS, CONSUMERS, max_bytes=10**9)
    assert Table("real", table_spec, 0).nbytes == Table("real", spec(100, **CONSUMERS), 0).nbytes


def test_a_budget_too_small_for_its_consumers_is_refused() -> None:
    with pytest.raises(UserError, match=r"found \d+ in a budget of 500 bytes"):
        Table("real", TableSpec(1_000, COLUMNS, CONSUMERS, max_bytes=500), 0)
    with pytest.raises(UserError, match="found 0 in a budget of 5 bytes: raise max_bytes"):
        Table("real", TableSpec(1_000, COLUMNS, {}, max_bytes=5), 0)


def test_tables_share_a_budget_in_proportion_to_their_needs() -> None:
    tables = {"real": spec(30_000, **CONSUMERS), "dream": spec(10_000), "queue": QueueSpec(2)}
    needs = [budget.table_bytes(tables[name], tables[name].capacity) for name in ("real", "dream")]
    part = budget.limited(tables, sum(needs) / 2)
    for name, need in zip(("real", "dream"), needs, strict=True):
        assert 0.49 * need < Table(name, part[name], 0).nbytes <= 0.5 * need
    assert part["queue"] == tables["queue"]
    assert budget.limited(tables, sum(needs) + 1) == tables


def test_tables_larger_than_the_free_memory_are_refused() -> None:
    columns = {**COLUMNS, "obs": Space((84, 84), "uint8")}
    with pytest.raises(
        UserError, match=r"1,000,000,000 rows of 'real' take 7,.* GB, but .* are free"
    ):
        Table("real", TableSpec(10**9, columns, {}), 0)


def test_an_atari_row_takes_at_most_5_percent_more_than_its_frame() -> None:
    columns = {**COLUMNS, "obs": Space((84, 84), "uint8")}
    table_spec = TableSpec(10**6, columns, {"policy": Consumer(32, 4, Prioritized(), context=3)})
    assert budget.table_bytes(table_spec, 10**6) <= 1.05 * 84 * 84 * 10**6


def test_available_memory_respects_the_limit_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    group = tmp_path / "cgroup"
    (group / "memory").mkdir(parents=True)
    assert budget.available_memory(tmp_path, group) == 8000 * 1024
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert budget.available_memory(tmp_path, group) == 8000 * 1024
    (group / "memory.max").write_text("5000\n")
    assert budget.available_memory(tmp_path, group) == 4000
    (group / "memory" / "memory.limit_in_bytes").write_text("3000\n")
    (group / "memory" / "memory.usage_in_bytes").write_text("500\n")
    assert budget.available_memory(tmp_path, group) == 2500
    assert budget.available_memory(tmp_path / "none", tmp_path / "none") == math.inf


def test_memory_does_not_grow_once_the_ring_is_full() -> None:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("this system does not say what is resident")
    table, episodes = Table("real", spec(20_000, **CONSUMERS), 0), Episodes()

    def turn() -> int:
        for _ in range(40):
            table.add(episodes.chunk([0, 1], np.zeros((2, 500))), np.arange(2))
            table.sample("a")
        return int(status.read_text().split()[1])

    turn()
    before = turn()
    for _ in range(5):
        after = turn()
    assert after <= before * 1.02
