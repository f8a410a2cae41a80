"""The recurrent state-space model (RSSM) of DreamerV3: a block GRU with a categorical latent.

A state has two parts: `deter` (…, D), the hidden state of the GRU, and `stoch` (…, S, K), S one-hot
vectors of K classes, which are sampled. The features of a state are both, concatenated: (…, F),
with F = S · K + D.

    deter_t      = GRU(deter_{t-1}, stoch_{t-1}, a_{t-1})
    prior        p(stoch_t | deter_t)
    posterior    q(stoch_t | deter_t, embedding of o_t)

At the first row of an episode, the previous state and the previous action are 0.

Everything that does not depend on the recurrence is computed for all rows at once. The gradients of
the recurrent weights are computed after the loop, as one product over all rows (`LoopWeight`).

Sources: DreamerV3 (Hafner et al. 2025) and its public code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.loop_weight import LoopWeight
from dreamfleet.agents.blocks.torch_compile import compile_on_first_call

INIT_SCALE = 1.1368  # a normal distribution truncated at two deviations then has variance 1/fan_in
NORM_EPS = 1e-4


class RSSMState(NamedTuple):
    """The state of an RSSM: `deter` (…, D) and the one-hot vectors `stoch` (…, S, K)."""

    deter: Tensor
    stoch: Tensor

    @property
    def features(self) -> Tensor:
        """Returns both parts of the state, concatenated: (…, S · K + D)."""
        return torch.cat([self.stoch.flatten(-2), self.deter], -1)

    def detached(self) -> RSSMState:
        """Returns the same state without a graph."""
        return RSSMState(self.deter.detach(), self.stoch.detach())

    def times(self, keep: Tensor) -> RSSMState:
        """Returns the state times `keep` (B, 1), which is 0 where the state shall be 0, else 1."""
        return RSSMState(self.deter * keep, self.stoch * keep.unsqueeze(-1))


class Linear(nn.Module):
    """A linear layer with weights (in, out) from a truncated normal distribution, biases 0.

    scale: a factor of the initial weights. fan_in: the number of inputs that the size of the
    initial weights depends on; by default all inputs.
    """

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0, fan_in: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        truncated_normal(self.weight, fan_in or inputs, scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)


class NormedLinear(nn.Module):
    """A linear layer, then a normalisation (`Norm`), then SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.norm = Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.linear(x)))


class Norm(nn.Module):
    """Scales the last axis to mean 0 and variance 1, then by learned factors.

    DreamerV3 has RMSNorm here, which does not subtract the mean. PyTorch has a fused backward pass
    for LayerNorm on CPUs, which takes a third of the time.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return normed(x, self.scale)


class MLP(nn.Module):
    """Hidden layers with `Norm` and SiLU, then a linear output layer.

    sizes: the numbers of units, from the input through the hidden layers to the output. scale: a
    factor of the initial weights of the output layer.
    """

    def __init__(self, *sizes: int, scale: float = 1.0) -> None:
        super().__init__()
        *hidden, outputs = sizes
        self.hidden = nn.Sequential(*map(NormedLinear, hidden[:-1], hidden[1:]))
        self.out = Linear(hidden[-1], outputs, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x))


def truncated_normal(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Fills `weight` from a normal distribution truncated at two standard deviations, in place."""
    nn.init.trunc_normal_(weight)  # at -2 and 2
    with torch.no_grad():
        weight.mul_(INIT_SCALE * scale / math.sqrt(fan_in))


# -------------------------------------------------------------------- between two matrix products


def normed(x: Tensor, scale: Tensor) -> Tensor:
    """Scales the last axis to mean 0 and variance 1, then by `scale`."""
    return F.layer_norm(x, x.shape[-1:], scale, eps=NORM_EPS)


def join_inputs(deter: Tensor, stoch: Tensor, deter_scale: Tensor, stoch_scale: Tensor) -> Tensor:
    """Returns the inputs of the GRU that come from the state, (B, 2 * hidden)."""
    return F.silu(torch.cat([normed(deter, deter_scale), normed(stoch, stoch_scale)], -1))


def gru_hidden(own: Tensor, inputs: Tensor, action: Tensor, scale: Tensor) -> Tensor:
    """Returns the hidden layer of the GRU, (B, D), from its three sums."""
    return F.silu(normed(own + inputs + action, scale))


def gru_update(gates: Tensor, own: Tensor) -> Tensor:
    """Returns the next hidden state of the GRU in blocks, (G, B, D/G), from gates and state."""
    reset, candidate, update = gates.chunk(3, -1)
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    return own.lerp(candidate, torch.sigmoid(update - 1))


def posterior_hidden(deter: Tensor, embed: Tensor, scale: Tensor) -> Tensor:
    """Returns the hidden layer of the posterior, (B, hidden), from its two sums."""
    return F.silu(normed(deter + embed, scale))


def mixed(logits: Tensor, unimix: float) -> Tensor:
    """Returns probabilities (…, K), of which `unimix` is shared out among all classes alike."""
    return (1 - unimix) * F.softmax(logits.float(), -1) + unimix / logits.shape[-1]


class _StraightThrough(torch.autograd.Function):
    """Returns one-hot samples, whose gradient is passed on to the probabilities."""

    @staticmethod
    def forward(ctx: Any, one_hot: Tensor, probs: Tensor) -> Tensor:
        ctx.dtype = probs.dtype
        return one_hot.view_as(one_hot)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient.to(ctx.dtype)


def race(logits: Tensor, noise: Tensor, unimix: float) -> Tensor:
    """Returns one-hot samples (…, S, K); `RSSM.sample` describes the arguments."""
    probs = mixed(logits, unimix)
    index = (probs.detach() / noise).argmax(-1, keepdim=True)
    one_hot = torch.zeros_like(logits).scatter_(-1, index, 1.0)
    sample: Tensor = _StraightThrough.apply(one_hot, probs)
    return sample


class Cell(NamedTuple):
    """What a step of the RSSM computes between two matrix products: functions of tensors.

    On a GPU, each function launches 3 to 8 kernels in the forward pass. A compiled one launches one
    or two.
    """

    join_inputs: Callable[..., Tensor] = join_inputs
    gru_hidden: Callable[..., Tensor] = gru_hidden
    gru_update: Callable[..., Tensor] = gru_update
    posterior_hidden: Callable[..., Tensor] = posterior_hidden
    sample: Callable[..., Tensor] = race

    @classmethod
    def compiled(cls, device: str) -> Cell:
        """Returns a cell whose functions torch.compile compiles when they are first called."""
        return cls(*(compile_on_first_call(function, device) for function in cls()))


PLAIN = Cell()


# ------------------------------------------------------------------------------------- the model


class RSSM(nn.Module):
    """The networks of an RSSM: the block GRU, the prior and the posterior.

    deter: D, a multiple of `blocks`. hidden: units in hidden layers. groups, classes: S and K.
    action, embed: the sizes of encoded actions and of embeddings of observations. unimix: the share
    of the uniform distribution in the prior and in the posterior.
    """

    def __init__(
        self,
        deter: int,
        hidden: int,
        groups: int,
        classes: int,
        action: int,
        embed: int,
        *,
        blocks: int = 8,
        unimix: float = 0.01,
    ) -> None:
        super().__init__()
        self.deter, self.groups, self.classes, self.blocks = deter, groups, classes, blocks
        self.unimix = unimix
        stoch, block = groups * classes, deter // blocks
        self.features = stoch + deter
        self.deter_in = Linear(deter, hidden)
        self.deter_norm = Norm(hidden)
        self.stoch_in = Linear(stoch, hidden)
        self.stoch_norm = Norm(hidden)
        self.action_in = NormedLinear(action, hidden)
        # The hidden layer of the GRU reads one block of `deter` and all three inputs per block. As
        # the inputs are the same for all blocks, their weights are one dense matrix.
        fan_in = blocks * (3 * hidden + block)  # of the whole layer, as in DreamerV3
        self.gru_inputs = Linear(3 * hidden, deter, fan_in=fan_in)
        self.gru_hidden = nn.Parameter(torch.empty(blocks, block, block))
        truncated_normal(self.gru_hidden, fan_in)
        self.gru_norm = Norm(deter)
        self.gates = nn.Parameter(torch.empty(blocks, block, 3 * block))
        self.gates_bias = nn.Parameter(torch.zeros(blocks, 1, 3 * block))
        truncated_normal(self.gates, deter)
        self.posterior_deter = Linear(deter, hidden, fan_in=deter + embed)
        self.posterior_embed = nn.Parameter(torch.empty(embed, hidden))
        truncated_normal(self.posterior_embed, deter + embed)
        self.posterior_norm = Norm(hidden)
        self.posterior_out = Linear(hidden, stoch)
        self.prior = MLP(deter, hidden, hidden, stoch)

    def initial(self, n: int) -> RSSMState:
        """Returns the state before the first row of n episodes, which is 0."""
        weight = self.gates
        return RSSMState(
            weight.new_zeros(n, self.deter), weight.new_zeros(n, self.groups, self.classes)
        )

    def observe(
        self,
        embed: Tensor,
        action: Tensor,
        first: Tensor,
        state: RSSMState,
        noise: Tensor,
        cell: Cell = PLAIN,
    ) -> tuple[RSSMState, Tensor]:
        """Returns the states after each of T rows, sampled from the posterior, and its logits.

        - embed (B, T, E): embeddings of the rows' observations.
        - action (B, T, A): encoded actions of the rows before them.
        - first (B, T): 1 where an episode begins, else 0.
        - state (B, …): the state of the row before the first of these rows.
        - noise (B, T, S, K): numbers from the exponential distribution, see `sample`.
        - cell: the functions of a step, which may be compiled.

        The states are (B, T, …), and the logits (B, T, S, K). Gradients pass through the samples
        (straight-through) and from row to row.
        """
        weights = self._loop_weights()
        keep = (1 - first).unsqueeze(-1)
        action_in = self._gru_action(action * keep).unbind(1)
        embed_in = (embed @ self.posterior_embed + self.posterior_deter.bias).unbind(1)
        keep_of, noise_of = keep.unbind(1), noise.unbind(1)
        deters, stochs, all_logits = [], [], []
        for t in range(embed.shape[1]):
            deter = self._gru(state.times(keep_of[t]), action_in[t], weights, cell)
            product = weights["posterior"].of(deter)
            hidden = cell.posterior_hidden(product, embed_in[t], self.posterior_norm.scale)
            logits = weights["posterior_out"].of(hidden)
            logits = logits.unflatten(-1, (self.groups, self.classes))
            state = RSSMState(deter, cell.sample(logits, noise_of[t], self.unimix))
            deters.append(deter)
            stochs.append(state.stoch)
            all_logits.append(logits)
        states = RSSMState(torch.stack(deters, 1), torch.stack(stochs, 1))
        return states, torch.stack(all_logits, 1)

    def imagine(
        self, state: RSSMState, action: Tensor, noise: Tensor, cell: Cell = PLAIN
    ) -> RSSMState:
        """Returns the next state (B, …), sampled from the prior.

        state (B, …): the present state. action (B, A): the encoded action. noise (B, S, K): numbers
        from the exponential distribution. cell: the functions of a step, which may be compiled.
        """
        deter = self._gru(state, self._gru_action(action), self._loop_weights(), cell)
        return RSSMState(deter, cell.sample(self.prior_logits(deter), noise, self.unimix))

    def posterior_logits(self, deter: Tensor, embed: Tensor) -> Tensor:
        """Returns the logits (…, S, K) of the posterior, given `deter` and embeddings (…, E)."""
        product = self.posterior_deter(deter)
        hidden = posterior_hidden(product, embed @ self.posterior_embed, self.posterior_norm.scale)
        logits: Tensor = self.posterior_out(hidden)
        return logits.unflatten(-1, (self.groups, self.classes))

    def prior_logits(self, deter: Tensor) -> Tensor:
        """Returns the logits (…, S, K) of the prior, the distribution of `stoch` given `deter`."""
        logits: Tensor = self.prior(deter)
        return logits.unflatten(-1, (self.groups, self.classes))

    def probs(self, logits: Tensor) -> Tensor:
        """Returns probabilities (…, K), of which `unimix` is shared out among all classes alike."""
        return mixed(logits, self.unimix)

    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Returns one-hot samples (…, S, K), with the gradient of the probabilities.

        noise (…, S, K): numbers from the exponential distribution. The class with the largest ratio
        of probability and noise is a sample of the distribution (an exponential race). With a
        constant in place of noise, the sample is the most probable class.
        """
        return race(logits, noise, self.unimix)

    def one_hot(self, stoch: Tensor) -> Tensor:
        """Returns one-hot vectors (…, S, K) for class indices (…, S)."""
        one_hot = self.gates.new_zeros(*stoch.shape, self.classes)
        return one_hot.scatter_(-1, stoch.long().unsqueeze(-1), 1.0)

    def kl(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """Returns KL(posterior ‖ prior) in nats, summed over the S groups: (…, S, K) → (…).

        posterior, prior: logits. Both distributions have their uniform share.
        """
        p, q = self.probs(posterior), self.probs(prior)
        return (p * (p.log() - q.log())).sum((-1, -2))

    def entropy(self, logits: Tensor) -> Tensor:
        """Returns the entropy in nats, summed over the S groups: (…, S, K) → (…)."""
        p = self.probs(logits)
        return -(p * p.log()).sum((-1, -2))

    def _loop_weights(self) -> dict[str, LoopWeight]:
        hidden = self.stoch_in.weight.shape[1]
        return {
            "deter": LoopWeight(self.deter_in.weight, self.deter_in.bias),
            "stoch": LoopWeight(self.stoch_in.weight, self.stoch_in.bias),
            "inputs": LoopWeight(self.gru_inputs.weight[: 2 * hidden]),
            "hidden": LoopWeight(self.gru_hidden),
            "gates": LoopWeight(self.gates, self.gates_bias),
            "posterior": LoopWeight(self.posterior_deter.weight),
            "posterior_out": LoopWeight(self.posterior_out.weight, self.posterior_out.bias),
        }

    def _gru_action(self, action: Tensor) -> Tensor:
        """Returns what encoded actions (…, A) add to the hidden layer of the GRU, (…, D)."""
        hidden = self.stoch_in.weight.shape[1]
        action = action / action.detach().abs().clamp(min=1)
        return self.action_in(action) @ self.gru_inputs.weight[2 * hidden :] + self.gru_inputs.bias

    def _gru(
        self, state: RSSMState, action_in: Tensor, weights: dict[str, LoopWeight], cell: Cell
    ) -> Tensor:
        """Returns the next `deter` (B, D). action_in (B, D): the output of `_gru_action`."""
        deter, own = state.deter, self._by_block(state.deter)  # (B, D), (G, B, D/G)
        from_deter = weights["deter"].of(deter)
        from_stoch = weights["stoch"].of(state.stoch.flatten(1))
        scales = self.deter_norm.scale, self.stoch_norm.scale
        inputs = weights["inputs"].of(cell.join_inputs(from_deter, from_stoch, *scales))
        from_own = self._merge(weights["hidden"].of(own))
        hidden = cell.gru_hidden(from_own, inputs, action_in, self.gru_norm.scale)
        return self._merge(cell.gru_update(weights["gates"].of(self._by_block(hidden)), own))

    def _by_block(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)  # (B, D) → (G, B, D/G)

    def _merge(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(1)  # (G, B, D/G) → (B, D)
