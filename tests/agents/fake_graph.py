"""A graph for tests on a CPU, which behaves as a CUDA graph does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class FakeGraph:
    """Records a function, and calls it again at each replay. Counts the calls of its methods.

    Like a CUDA graph, it reads its inputs where they were when it captured, executes nothing when
    it captures, and writes all results to the same memory.
    """

    def __init__(self) -> None:
        self.warm_ups = self.captures = self.replays = 0
        self._run: Callable[[], list[Tensor]] | None = None
        self._results: list[Tensor] = []

    def warm_up(self, run: Callable[[], Any]) -> Any:
        self.warm_ups += 1
        return run()

    def capture(self, run: Callable[[], list[Tensor]]) -> None:
        self.captures += 1
        self._run = run

    def replay(self) -> list[Tensor]:
        self.replays += 1
        assert self._run is not None
        found = self._run()
        if not self._results:
            self._results = [torch.empty_like(result) for result in found]
        for result, new in zip(self._results, found, strict=True):
            result.copy_(new)
        return self._results
