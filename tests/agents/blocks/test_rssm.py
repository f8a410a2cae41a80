from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from dreamfleet.agents.blocks.rssm import NORM_EPS, PLAIN, RSSM, Cell, RSSMState

DETER, HIDDEN, GROUPS, CLASSES, ACTION, EMBED, BLOCKS = 16, 6, 3, 4, 2, 5, 4


def make_rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build_rssm(seed: int = 0) -> RSSM:
    """Returns a small RSSM in float64 whose parameters, biases and scales too, are random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rssm = RSSM(DETER, HIDDEN, GROUPS, CLASSES, ACTION, EMBED, blocks=BLOCKS).double()
        for parameter in rssm.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return rssm


def draw_windows(B: int, T: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, RSSMState, Tensor]:
    """Returns random arguments of `RSSM.observe`."""
    rng = make_rng(seed)
    first = (torch.rand(B, T, generator=rng) < 0.3).double()
    index = torch.randint(CLASSES, (B, GROUPS), generator=rng)
    state = RSSMState(
        torch.randn(B, DETER, generator=rng).double().tanh(), F.one_hot(index, CLASSES).double()
    )
    noise = torch.empty(B, T, GROUPS, CLASSES).exponential_(generator=rng)
    embed = torch.randn(B, T, EMBED, generator=rng).double()
    action = 2 * torch.randn(B, T, ACTION, generator=rng).double()
    return embed, action, first, state, noise


# ------------------------------------------------------------------------- a plain reference


def reference_norm(x: Tensor, scale: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return scale * centred / (centred.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()


def reference_probs(logits: Tensor) -> Tensor:
    return 0.99 * torch.softmax(logits, -1) + 0.01 / CLASSES


def reference_gru(rssm: RSSM, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """Returns the next `deter`: DreamerV3's block GRU, one block after the other.

    Each block reads its own part of `deter`, followed by all three inputs.
    """

    def dense(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        return F.silu(reference_norm(x @ weight + bias, scale))

    action = action / action.abs().clamp(min=1)
    linear = rssm.action_in.linear
    inputs = torch.cat(
        [
            dense(deter, rssm.deter_in.weight, rssm.deter_in.bias, rssm.deter_norm.scale),
            dense(
                stoch.flatten(1), rssm.stoch_in.weight, rssm.stoch_in.bias, rssm.stoch_norm.scale
            ),
            dense(action, linear.weight, linear.bias, rssm.action_in.norm.scale),
        ],
        -1,
    )
    size = DETER // BLOCKS
    hidden = []
    for g in range(BLOCKS):
        own = slice(g * size, (g + 1) * size)
        weight = torch.cat([rssm.gru_hidden[g], rssm.gru_inputs.weight[:, own]])
        x = torch.cat([deter[:, own], inputs], -1)
        hidden.append(x @ weight + rssm.gru_inputs.bias[own])
    normed = F.silu(reference_norm(torch.cat(hidden, -1), rssm.gru_norm.scale))
    following = []
    for g in range(BLOCKS):
        own = slice(g * size, (g + 1) * size)
        gates = normed[:, own] @ rssm.gates[g] + rssm.gates_bias[g]
        reset, candidate, update = gates.split(size, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1)
        following.append(update * candidate + (1 - update) * deter[:, own])
    return torch.cat(following, -1)


def reference_sample(logits: Tensor, noise: Tensor) -> Tensor:
    probs = reference_probs(logits)
    one_hot = F.one_hot((probs.detach() / noise).argmax(-1), CLASSES).to(probs.dtype)
    return one_hot + (probs - probs.detach())


def reference_observe(
    rssm: RSSM, embed: Tensor, action: Tensor, first: Tensor, state: RSSMState, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    deter, stoch = state
    found = []
    for t in range(embed.shape[1]):
        keep = (1 - first[:, t])[:, None]
        deter = reference_gru(rssm, deter * keep, stoch * keep[..., None], action[:, t] * keep)
        weight = torch.cat([rssm.posterior_deter.weight, rssm.posterior_embed])
        x = torch.cat([deter, embed[:, t]], -1) @ weight + rssm.posterior_deter.bias
        x = F.silu(reference_norm(x, rssm.posterior_norm.scale))
        logits = x @ rssm.posterior_out.weight + rssm.posterior_out.bias
        logits = logits.view(-1, GROUPS, CLASSES)
        stoch = reference_sample(logits, noise[:, t])
        found.append((deter, stoch, logits))
    deters, stochs, all_logits = (torch.stack(part, 1) for part in zip(*found, strict=True))
    return deters, stochs, all_logits


def test_a_step_is_dreamerv3s_block_gru_computed_block_by_block():
    rssm = build_rssm()
    _, action, _, state, noise = draw_windows(7, 1)
    found = rssm.imagine(state, action[:, 0], noise[:, 0])
    expected = reference_gru(rssm, *state, action[:, 0])
    torch.testing.assert_close(found.deter, expected, rtol=1e-10, atol=1e-12)
    x = found.deter
    for layer in rssm.prior.hidden:
        x = F.silu(reference_norm(x @ layer.linear.weight + layer.linear.bias, layer.norm.scale))
    logits = rssm.prior.out(x).view(-1, GROUPS, CLASSES)
    torch.testing.assert_close(rssm.prior_logits(found.deter), logits)
    torch.testing.assert_close(found.stoch, reference_sample(logits, noise[:, 0]), rtol=0, atol=0)


def test_states_posteriors_and_all_gradients_equal_those_of_a_plain_loop():
    rssm, windows = build_rssm(), draw_windows(4, 6)
    states, logits = rssm.observe(*windows)
    expected = reference_observe(rssm, *windows)
    factors = [torch.randn(part.shape, generator=make_rng(5)).double() for part in expected]
    for found, wanted in zip((*states, logits), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    used = [parameter for name, parameter in rssm.named_parameters() if "prior" not in name]
    losses = [
        sum((part * factor).sum() for part, factor in zip(parts, factors, strict=True))
        for parts in ((*states, logits), expected)
    ]
    for found, wanted in zip(*(torch.autograd.grad(loss, used) for loss in losses), strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.costly
@pytest.mark.timeout(300)  # the compiler takes a minute on an idle core
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_steps_equal_plain_ones():
    rssm, windows, cell = build_rssm(), draw_windows(4, 6), Cell.compiled("cpu")
    factor = torch.randn(4, 6, rssm.features, generator=make_rng(5)).double()
    results = []
    for each in (PLAIN, cell):
        states, logits = rssm.observe(*windows, each)
        loss = (states.features * factor).sum() + logits.square().sum()
        used = [parameter for name, parameter in rssm.named_parameters() if "prior" not in name]
        with torch.no_grad():
            dreamed = rssm.imagine(windows[3], windows[1][:, 0], windows[4][:, 0], each)
        results.append((states, logits, torch.autograd.grad(loss, used), dreamed))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------ distributions


def random_logits(*shape: int, seed: int = 0, size: float = 3.0) -> Tensor:
    return size * torch.randn(*shape, CLASSES, generator=make_rng(seed))


def test_kl_and_entropy_are_the_sums_over_groups_and_classes():
    rssm = build_rssm()
    posterior, prior = random_logits(2, 5, GROUPS), random_logits(2, 5, GROUPS, seed=1)
    expected, entropy = np.zeros((2, 5)), np.zeros((2, 5))
    for b in range(2):
        for t in range(5):
            for s in range(GROUPS):
                p, q = (
                    [math.exp(x) for x in logits[b, t, s].tolist()] for logits in (posterior, prior)
                )
                p = [0.99 * x / sum(p) + 0.01 / CLASSES for x in p]
                q = [0.99 * x / sum(q) + 0.01 / CLASSES for x in q]
                expected[b, t] += sum(a * math.log(a / c) for a, c in zip(p, q, strict=True))
                entropy[b, t] -= sum(a * math.log(a) for a in p)
    np.testing.assert_allclose(rssm.kl(posterior, prior), expected, rtol=1e-5)
    np.testing.assert_allclose(rssm.entropy(posterior), entropy, rtol=1e-5)
    oracle = kl_divergence(*(Categorical(probs=rssm.probs(x)) for x in (posterior, prior))).sum(-1)
    torch.testing.assert_close(rssm.kl(posterior, prior), oracle, rtol=1e-4, atol=1e-5)
    assert rssm.kl(prior, prior).abs().max() == 0


def test_one_percent_of_the_probability_is_uniform_so_a_kl_stays_finite():
    rssm = build_rssm()
    sure = torch.tensor([[1e4, 0, 0, 0]]), torch.tensor([[0, 1e4, 0, 0]])
    np.testing.assert_allclose(rssm.probs(sure[0]), [[0.9925, 0.0025, 0.0025, 0.0025]], rtol=1e-6)
    expected = 0.9925 * math.log(0.9925 / 0.0025) + 0.0025 * math.log(0.0025 / 0.9925)
    assert rssm.kl(*sure).item() == pytest.approx(expected, rel=1e-5)


def test_samples_have_the_frequencies_of_the_probabilities():
    rssm, n = build_rssm(), 200_000
    logits = random_logits(GROUPS, size=1.5)
    noise = torch.empty(n, GROUPS, CLASSES).exponential_(generator=make_rng(0))
    samples = rssm.sample(logits.expand(n, -1, -1), noise)
    expected = reference_probs(logits)
    error = (samples.mean(0) - expected) / (expected * (1 - expected) / n).sqrt()
    assert error.abs().max() < 4  # standard deviations
    assert error.abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_samples_are_exactly_one_hot_and_have_the_gradient_of_the_probabilities(dtype):
    rssm = build_rssm()
    logits = random_logits(50, GROUPS).to(dtype).requires_grad_()
    noise = torch.empty(50, GROUPS, CLASSES).exponential_(generator=make_rng(1))
    samples = rssm.sample(logits, noise)
    assert samples.dtype == dtype
    assert set(samples.flatten().tolist()) == {0.0, 1.0}
    assert (samples.sum(-1) == 1).all()
    factor = torch.randn(samples.shape, generator=make_rng(2)).to(dtype)
    (found,) = torch.autograd.grad((samples * factor).sum(), logits)
    (expected,) = torch.autograd.grad((reference_probs(logits.float()) * factor).sum(), logits)
    torch.testing.assert_close(
        found, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )


def test_noise_of_ones_gives_the_most_probable_class():
    rssm, logits = build_rssm(), random_logits(50, GROUPS)
    samples = rssm.sample(logits, torch.ones_like(logits))
    assert torch.equal(samples.argmax(-1), logits.argmax(-1))


def test_class_indices_become_one_hot_vectors():
    index = torch.tensor([[[0, 3, 1]], [[2, 2, 0]]], dtype=torch.uint8)
    assert torch.equal(build_rssm().one_hot(index), F.one_hot(index.long(), CLASSES).double())


# --------------------------------------------------------------------------------- sequences


def test_nothing_before_the_first_row_of_an_episode_matters():
    """State and action before a reset row may be anything: all later results are equal."""
    rssm, start = build_rssm(), 2
    embed, action, first, state, noise = draw_windows(3, 5)
    first[:] = 0
    first[:, start] = 1
    states, logits = rssm.observe(embed, action, first, state, noise)
    other = draw_windows(3, 5, seed=1)
    embed[:, :start], noise[:, :start] = other[0][:, :start], other[4][:, :start]
    action[:, : start + 1] = other[1][:, : start + 1]
    changed, changed_logits = rssm.observe(embed, action, first, other[3], noise)
    for before, after in zip((*states, logits), (*changed, changed_logits), strict=True):
        assert torch.equal(before[:, start:], after[:, start:])
        assert not torch.equal(before[:, :start], after[:, :start])
    fresh = torch.zeros(3, ACTION).double()
    begun, _ = rssm.observe(
        embed[:, start:],
        torch.cat([fresh[:, None], action[:, start + 1 :]], 1),
        torch.zeros(3, 3).double(),
        rssm.initial(3),
        noise[:, start:],
    )
    assert torch.equal(begun.deter, states.deter[:, start:])


def test_no_gradient_passes_a_reset():
    rssm = build_rssm()
    embed, action, first, state, noise = draw_windows(3, 4)
    first[:] = 0
    first[:, 2] = 1
    embed.requires_grad_()
    states, _ = rssm.observe(embed, action, first, state, noise)
    (gradient,) = torch.autograd.grad(states.features[:, 3].square().sum(), embed)
    assert gradient[:, :2].abs().max() == 0
    assert gradient[:, 2].abs().max() > 0


def test_row_by_row_the_posterior_is_that_of_all_rows_at_once():
    rssm = build_rssm()
    embed, action, first, state, noise = draw_windows(4, 6)
    states, logits = rssm.observe(embed, action, first, state, noise)
    for t in range(6):
        row = slice(t, t + 1)
        one, one_logits = rssm.observe(
            embed[:, row], action[:, row], first[:, row], state, noise[:, row]
        )
        torch.testing.assert_close(one.deter[:, 0], states.deter[:, t])
        assert torch.equal(one.stoch[:, 0], states.stoch[:, t])
        torch.testing.assert_close(one_logits[:, 0], logits[:, t])
        state = RSSMState(one.deter[:, 0], one.stoch[:, 0])


def test_features_are_the_samples_and_then_the_hidden_state():
    state = draw_windows(2, 1)[3]
    assert torch.equal(state.features, torch.cat([state.stoch.reshape(2, -1), state.deter], 1))
    assert state.features.shape == (2, build_rssm().features)


def test_initial_weights_have_the_deviation_of_dreamerv3():
    """The variance is 1 / fan_in; a layer of blocks counts the inputs of all its blocks."""
    torch.manual_seed(0)
    rssm = RSSM(256, 64, 8, 8, 6, 128)
    whole = 8 * (3 * 64 + 32)
    for weight, fan_in in [
        (rssm.gru_inputs.weight, whole),
        (rssm.gru_hidden, whole),
        (rssm.gates, 256),
        (rssm.posterior_embed, 256 + 128),
        (rssm.posterior_deter.weight, 256 + 128),
        (rssm.deter_in.weight, 256),
    ]:
        assert weight.std().item() * math.sqrt(fan_in) == pytest.approx(1, abs=0.03)
        assert weight.abs().max().item() * math.sqrt(fan_in) <= 2 * 1.1369
