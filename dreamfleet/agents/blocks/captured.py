"""Captures an agent's updates and dreams in CUDA graphs, so that a GPU need not wait for Python.

A CUDA graph is a recording of GPU operations, which is replayed by one call. Small networks need
thousands of short operations, and starting each of them from Python takes longer than the operation
itself.

`captured` decorates the methods to capture. They must be functions of tensors: the same operations
for every input, nothing that waits for the device, and state that changes in place on the device
only. On a CPU such a method is called as it is.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Final, Protocol, TypeVar, cast

import torch
from torch import Tensor

WARM_UP_CALLS: Final = 3  # calls that are run as they are before the next call is captured
MOST_GRAPHS: Final = 4  # of one method: one for each structure of its inputs

F = TypeVar("F", bound=Callable[..., Any])


def captured(method: F) -> F:
    """Decorates a method of an agent: on a GPU the method is captured in a CUDA graph.

    The agent has the attributes `device` and `groups` of a `WeightGroups`; the generators of all
    groups may be used. Arguments and results are tensors, None and numbers, in nested dicts and
    tuples. Numbers count as part of the structure of the inputs.
    """

    @wraps(method)
    def call(agent: Any, *inputs: Any) -> Any:
        if torch.device(agent.device).type != "cuda":
            return method(agent, *inputs)
        methods = agent.__dict__.setdefault("recorded", {})
        if method.__name__ not in methods:
            rngs = [rng for group in agent.groups.values() for rng in group.rngs.values()]
            graph = partial(CudaGraph, rngs)
            methods[method.__name__] = CapturedFunction(partial(method, agent), graph)
        return methods[method.__name__](*inputs)

    call.__dict__["is_captured"] = True
    return cast(F, call)


def captured_methods(agent: object) -> list[str]:
    """Returns the names of an agent's methods that `captured` decorates."""
    methods = vars(type(agent)).items()
    return [name for name, method in methods if getattr(method, "is_captured", False)]


class Graph(Protocol):
    """A recording of the operations of one function without arguments."""

    def warm_up(self, run: Callable[[], Any]) -> Any:
        """Calls `run` as it is, and returns its result."""
        ...

    def capture(self, run: Callable[[], list[Tensor]]) -> None:
        """Records the operations of `run` without executing them."""
        ...

    def replay(self) -> list[Tensor]:
        """Executes the recorded operations. Returns their results, which the next call overwrites.

        The results always are the same tensors.
        """
        ...


class CudaGraph:
    """A recording of GPU operations. rngs: the generators that the operations may use."""

    def __init__(self, rngs: Sequence[torch.Generator]) -> None:
        self._rngs = rngs
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream()
        self._results: list[Tensor] = []

    def warm_up(self, run: Callable[[], Any]) -> Any:
        """Calls `run` on the stream that captures later, as CUDA libraries set up each stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = run()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def capture(self, run: Callable[[], list[Tensor]]) -> None:
        """Records the operations of `run`. Raises RuntimeError if one of them cannot be recorded.

        The generators are as before if an error was raised.
        """
        states = [rng.clone_state() for rng in self._rngs]
        for rng in self._rngs:
            self._graph.register_generator_state(rng)
        # "thread_local": other threads of this process may use the GPU meanwhile.
        context = torch.cuda.graph(
            self._graph, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with context:
                self._results = run()
        except RuntimeError:
            for rng, state in zip(self._rngs, states, strict=True):
                rng.graphsafe_set_state(state)  # the old state counts as being captured for ever
            raise

    def replay(self) -> list[Tensor]:
        self._graph.replay()
        return self._results


class Recording:
    """The recording of a function for inputs of one structure. graph: an unused graph."""

    def __init__(self, structure: Any, graph: Graph) -> None:
        self.structure = structure
        self._graph: Graph | None = graph
        self._calls = 0
        self._inputs: list[Tensor] | None = None  # the memory from which the graph reads
        self._result: Any = None  # of the last recorded call, without memory

    def __call__(self, function: Callable[..., Any], inputs: Any) -> Any:
        """Returns function(*inputs), computed as it is or by replaying the graph."""
        if self._graph is None:
            return function(*inputs)
        if self._calls < WARM_UP_CALLS:
            self._calls += 1
            return self._graph.warm_up(partial(function, *inputs))
        if self._inputs is None:
            self._inputs = self._capture(self._graph, function, inputs)
        if self._inputs is None:
            self._graph = None
            return function(*inputs)
        if self._inputs:
            torch._foreach_copy_(self._inputs, tensors_of(inputs), non_blocking=True)
        buffers = [buffer.clone() for buffer in self._graph.replay()]
        pieces = iter(split(buffers, tensors_of(self._result)))
        return map_tensors(lambda _: next(pieces), self._result)

    def _capture(
        self, graph: Graph, function: Callable[..., Any], inputs: Any
    ) -> list[Tensor] | None:
        """Records the function. Returns the tensors from which the recording reads its inputs.

        Returns None, and warns, if the function cannot be recorded.
        """
        copies = map_tensors(Tensor.clone, inputs)

        def run() -> list[Tensor]:
            result = function(*copies)
            self._result = map_tensors(lambda t: torch.empty_like(t, device="meta"), result)
            return join(tensors_of(result))

        try:
            graph.capture(run)
        except RuntimeError as error:
            name = getattr(getattr(function, "func", function), "__qualname__", str(function))
            # An error while operations are recorded is followed by that of ending the recording.
            reason = str(error.__context__ or error).strip().split("\n")[0]
            warnings.warn(
                f"{name} cannot be captured in a CUDA graph, so it is slower: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return tensors_of(copies)


class CapturedFunction:
    """Calls a function of tensors by replaying a graph of it, after `WARM_UP_CALLS` calls.

    Every call changes the state of the function exactly once, and no call overwrites the results of
    an earlier one. There is one graph for each structure of the inputs: names, shapes, dtypes and
    numbers, and which of them are None. After `MOST_GRAPHS` structures, inputs of other structures
    are not captured. A function that cannot be captured is called as it is, with a warning: slow
    training is better than none.

    graph: makes an unused graph.
    """

    def __init__(self, function: Callable[..., Any], graph: Callable[[], Graph]) -> None:
        self.function = function
        self._graph = graph
        self._recordings: list[Recording] = []

    def __call__(self, *inputs: Any) -> Any:
        structure = map_tensors(lambda t: [t.shape, t.dtype, t.device], inputs)
        for recording in self._recordings:
            if recording.structure == structure:
                return recording(self.function, inputs)
        if len(self._recordings) == MOST_GRAPHS:
            return self.function(*inputs)
        self._recordings.append(Recording(structure, self._graph()))
        return self._recordings[-1](self.function, inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedFunction:
        """Returns a copy without recordings, as these belong to the tensors of the original."""
        return CapturedFunction(
            copy.deepcopy(self.function, memo), copy.deepcopy(self._graph, memo)
        )


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Returns nested dicts and tuples in which `function` was applied to each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_tensors(function, value) for value in tree)
    return tree


def tensors_of(tree: Any) -> list[Tensor]:
    """Returns all tensors of nested dicts and tuples, in order."""
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


def join(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Joins tensors into one flat buffer for each dtype: a few large copies beat many small ones.

    The buffers are in the order in which their dtypes first occur.
    """
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor.detach().reshape(-1))
    return [torch.cat(group) for group in by_dtype.values()]


def split(buffers: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Returns the tensors that `join` joined to `buffers`, as views with the shapes of `like`."""
    rest = {buffer.dtype: buffer for buffer in buffers}
    found = []
    for tensor in like:
        buffer = rest[tensor.dtype]
        found.append(buffer[: tensor.numel()].view(tensor.shape))
        rest[tensor.dtype] = buffer[tensor.numel() :]
    return found
