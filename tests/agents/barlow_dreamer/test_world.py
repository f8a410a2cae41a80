from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dreamfleet.agents.barlow_dreamer.agent import BarlowDreamer
from dreamfleet.agents.blocks.arrays import to_array
from dreamfleet.agents.blocks.rssm import RSSMState
from dreamfleet.core.types import Batch, EnvSpec, Space
from tests.agents.barlow_dreamer.system import (
    CONTINUOUS,
    IMAGES,
    VECTOR,
    build_agent,
    draw_rows,
    dream,
)

ALL_SPECS = pytest.mark.parametrize(
    "spec", [VECTOR, CONTINUOUS, IMAGES], ids=["vector", "continuous", "images"]
)


def shake(agent: BarlowDreamer) -> None:
    """Makes the outputs of all heads differ from 0."""
    rng = torch.Generator().manual_seed(7)
    for parameter in (*agent.world.parameters(), *agent.behaviour.parameters()):
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=rng)


# ---------------------------------------------------------------------------------- the loss


@ALL_SPECS
def test_the_loss_is_the_sum_of_its_parts_row_by_row(spec):
    agent = build_agent(spec, free_nats=0.5, posterior_weight=0.3, prior_weight=0.7)
    shake(agent)
    rows, world, config = draw_rows(agent), agent.world, agent.config
    rng_state = agent.world_rng.get_state()
    found = agent.world_loss(rows)
    agent.world_rng.set_state(rng_state)
    noise = agent.noise(config.batch, config.window, agent.world_rng)
    window = {name: value[:, 1:] for name, value in rows.items() if value.ndim > 2 or name in FLAGS}
    with torch.no_grad():
        before = RSSMState(
            rows["deter"].float(), F.one_hot(rows["stoch"].long(), config.sizes.classes).float()
        )
        encoded = agent.encode(rows["action"])
        states, posterior, embed = world.observe(window, encoded[:, :-1], before, noise)
        prior = world.rssm.prior_logits(states.deter)
        rewards, conts = world.reward(states.features), world.cont(states.features)
        objective = world.objective(states.features, encoded[:, 1:], embed, window)
    sums = dict.fromkeys(["prior", "posterior", "reward", "continue"], 0.0)
    priorities, n = [], config.batch * config.window
    for b in range(config.batch):
        priority = 0.0
        for t in range(config.window):
            kl = world.rssm.kl(posterior[b, t], prior[b, t]).item()
            p = torch.sigmoid(conts[b, t, 0]).item()
            terminal = rows["terminal"][b, 1 + t].item()
            parts = {
                "prior": 0.7 * max(kl, 0.5),
                "posterior": 0.3 * max(kl, 0.5),
                "reward": world.number.loss(rewards[b, t], rows["reward"][b, 1 + t]).item(),
                "continue": -math.log(1 - p if terminal else p),
            }
            sums = {name: sums[name] + part / n for name, part in parts.items()}
            priority += sum(parts.values()) / config.window
        priorities.append(priority)
    for name, value in sums.items():
        assert found.terms[f"loss/{name}"].item() == pytest.approx(value, rel=1e-4), name
    assert found.terms["loss/objective"].item() == pytest.approx(
        agent.config.objective_weight * objective.item(), rel=1e-4
    )
    np.testing.assert_allclose(found.priority, priorities, rtol=1e-4)


FLAGS = ("reward", "first", "last", "terminal", "obs")


def test_each_kl_trains_only_its_own_side():
    """The first trains the prior, the second the posterior (and what comes before it)."""
    agent = build_agent(free_nats=0.0, posterior_weight=1.0)
    world = agent.world
    terms = agent.world_loss(draw_rows(agent)).terms
    prior, posterior = world.rssm.prior.out.weight, world.rssm.posterior_out.weight
    encoder = next(world.encoder.parameters())
    of_prior = torch.autograd.grad(terms["loss/prior"], [prior], retain_graph=True)
    assert of_prior[0].abs().max() > 0
    (gradient,) = torch.autograd.grad(
        terms["loss/posterior"], [prior], retain_graph=True, materialize_grads=True
    )
    assert gradient.abs().max() == 0
    for part in (posterior, encoder):
        (gradient,) = torch.autograd.grad(terms["loss/posterior"], [part], retain_graph=True)
        assert gradient.abs().max() > 0


def test_kls_below_the_free_nats_train_nothing():
    agent = build_agent(free_nats=1e4)
    terms = agent.world_loss(draw_rows(agent)).terms
    assert terms["loss/prior"].item() == 1e4
    assert terms["loss/posterior"].item() == pytest.approx(1e3)
    parameters = list(agent.world.rssm.parameters())
    for name in ("loss/prior", "loss/posterior"):
        gradients = torch.autograd.grad(
            terms[name], parameters, retain_graph=True, materialize_grads=True
        )
        assert all(gradient.abs().max() == 0 for gradient in gradients)


@ALL_SPECS
def test_an_update_returns_the_new_states_of_its_rows(spec):
    """They are the posterior states before the update, as `act` would store them."""
    agent = build_agent(spec)
    rows, config = draw_rows(agent), agent.config
    sizes, rng_state = config.sizes, agent.world_rng.get_state()
    expected = agent.world_loss(rows)
    agent.world_rng.set_state(rng_state)
    metrics, found, priority = agent.update_world(rows)
    assert found["deter"].shape == (config.batch, config.window, sizes.deter)
    assert found["stoch"].shape == (config.batch, config.window, sizes.groups)
    assert (found["deter"].dtype, found["stoch"].dtype) == (torch.float16, torch.uint8)
    assert torch.equal(found["deter"], expected.states.deter.half())
    assert torch.equal(found["stoch"].long(), expected.states.stoch.argmax(-1))
    assert torch.equal(priority, expected.priority)
    assert not any(
        torch.is_tensor(x) and x.requires_grad for x in (*metrics.values(), *found.values())
    )


def test_rows_of_an_earlier_episode_do_not_change_the_states_of_a_later_one():
    agent = build_agent()
    rows = draw_rows(agent)
    rows["first"][:] = False
    rows["first"][:, 4] = True
    rng_state = agent.world_rng.get_state()
    before = agent.world_loss(rows).states
    for name in ("obs", "action", "reward"):
        rows[name][:, :4] = rows[name].flip(0)[:, :4]
    rows["deter"] = -rows["deter"]
    agent.world_rng.set_state(rng_state)
    after = agent.world_loss(rows).states
    assert torch.equal(before.features[:, 3:], after.features[:, 3:])
    assert not torch.equal(before.features[:, :3], after.features[:, :3])


def test_acting_step_by_step_gives_the_states_of_the_whole_window():
    agent = build_agent()
    rows = draw_rows(agent)
    rows["first"][:, 0] = True
    n, T = rows["reward"].shape
    found, state = [], agent.initial_state(n)
    for t in range(T):
        now = {name: to_array(rows[name][:, t]) for name in ("obs", "first", "reward")}
        _, (deter, stoch, _), stored = agent.act(now, state, explore=False)
        found.append(stored)
        state = deter, stoch, agent.encode(rows["action"][:, t])
    noise = agent.noise(n, T, None)
    before = F.pad(agent.encode(rows["action"])[:, :-1], (0, 0, 1, 0))
    with torch.no_grad():
        states, _, _ = agent.world.observe(rows, before, agent.world.rssm.initial(n), noise)
    for t in range(T):
        np.testing.assert_allclose(found[t]["deter"], states.deter[:, t], atol=2e-3)
        assert (found[t]["stoch"] == states.stoch[:, t].argmax(-1).numpy()).all()


# --------------------------------------------------------------------------------- the update


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_accumulation_takes_the_mean_of_the_gradients_of_both_halves(precision):
    agent = build_agent(accumulate=2, precision=precision)
    rows, parameters = draw_rows(agent), list(agent.world.parameters())
    rng_state = agent.world_rng.get_state()
    gradients, terms = [], []
    for half in (slice(0, 2), slice(2, 4)):
        result = agent.world_loss({name: value[half] for name, value in rows.items()})
        loss = torch.stack([*result.terms.values()]).sum()
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradients.append(torch.cat([part.flatten().float() for part in parts]))
        terms.append(result)
    expected = (gradients[0] + gradients[1]) / 2
    agent.world_rng.set_state(rng_state)
    metrics, latents, priority = agent.update_world(rows)
    tolerance = 1e-4 if precision == "float32" else 2e-2
    assert metrics["grad_norm/world"].item() == pytest.approx(expected.norm().item(), rel=tolerance)
    square = torch.from_numpy(agent.world_optimizer.state()["exp_avg_sq"]).sqrt()
    sizes = [parameter.numel() for parameter in parameters]
    for found, wanted in zip(square.split(sizes), expected.split(sizes), strict=True):
        if wanted.norm() > 0:  # clipping scales each tensor
            cosine = F.cosine_similarity(found, wanted.abs(), dim=0).item()
            assert cosine == pytest.approx(1, abs=tolerance)
    for name, value in terms[0].terms.items():
        mean = (value + terms[1].terms[name]).item() / 2
        assert metrics[name].item() == pytest.approx(mean, rel=1e-3, abs=1e-6)
    assert torch.equal(priority, torch.cat([half.priority for half in terms]))
    assert torch.equal(latents["deter"], torch.cat([half.states.deter for half in terms]).half())


@pytest.mark.costly
@pytest.mark.timeout(300)  # the compiler takes a minute on an idle core
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_updates_and_dreams_equal_plain_ones():
    found = []
    for compile in (False, True):
        agent = build_agent(compile=compile)
        rows = draw_rows(agent)
        metrics, states, _ = agent.update_world(rows)
        found.append((metrics, states, dream(agent, rows, states)))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)


def test_checkpointing_the_encoder_changes_no_gradient():
    found = []
    for checkpoint in (False, True):
        agent = build_agent(IMAGES, checkpoint=checkpoint)
        for seed in range(2):
            agent.update_world(draw_rows(agent, seed))
        found.append([*agent.world.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "images"])
def test_the_probe_changes_no_bit_of_the_agent(spec):
    agents = [build_agent(spec, probe=probe, lr=1e-3) for probe in (False, True)]
    probed = [parameter.clone() for parameter in agents[1].probe.parameters()]
    for update in range(5):
        metrics = []
        for agent in agents:
            rows = draw_rows(agent, update)
            found, latents, _ = agent.update_world(rows)
            dreams = dream(agent, rows, latents)
            metrics.append({**found, **agent.update_policy(dreams)})
        assert metrics[1].pop("loss/probe") > 0
        assert metrics[0].keys() == metrics[1].keys()
        for name, value in metrics[0].items():
            assert torch.equal(value, metrics[1][name]), name
    plain, with_probe = map(all_numbers, agents)
    kept = {path: value for path, value in with_probe.items() if "probe" not in path}
    assert plain.keys() == kept.keys() and len(kept) > 50
    for path, value in plain.items():
        assert np.array_equal(value, kept[path]), path
    assert not torch.equal(probed[0], next(agents[1].probe.parameters()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_restored_agent_goes_on_bit_for_bit(precision):
    agent, other = (build_agent(seed=seed, precision=precision, lr=1e-3) for seed in range(2))
    for seed in range(4):
        if seed == 2:
            for group in ("world", "policy"):
                other.restore(group, agent.state(group))
        for part in [agent, other][: 1 + (seed >= 2)]:
            rows = draw_rows(part, seed)
            _, latents, _ = part.update_world(rows)
            part.update_policy(dream(part, rows, latents))
    found, expected = all_numbers(other), all_numbers(agent)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert np.array_equal(found[path], value), path


def all_numbers(agent: BarlowDreamer) -> dict[str, np.ndarray]:
    """Returns all weights, moments and generator states of an agent, by path."""
    found: dict[str, np.ndarray] = {}

    def visit(path: str, value: object) -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                visit(f"{path}/{name}", part)
        else:
            found[path] = np.asarray(value)

    for group in ("world", "policy"):
        visit(group, agent.state(group))
    return found


@pytest.mark.parametrize("objective", ["barlow", "barlow-next", "reconstruction", "none"])
def test_updates_reduce_the_loss_on_the_same_rows(objective):
    agent = build_agent(objective=objective, lr=1e-3)
    rows = draw_rows(agent)
    losses = [agent.update_world(rows)[0] for _ in range(30)]
    names = ["loss/reward", "loss/continue"] + ["loss/objective"] * (objective != "none")
    for name in names:
        assert losses[-1][name] < 0.9 * losses[0][name], name


# ----------------------------------------------------------------------- a world without chance

LENGTH, DELAY = 5, 1


class Counter:
    """An environment whose observation is the number of the row in its episode, one-hot.

    Action 1 at row 1 gives a reward of 1, which arrives with row 2. Action 1 at row 2 ends the
    episode at row 3; otherwise it ends at row 4. Both ends are terminal.
    """

    spec = EnvSpec("Counter-v0", Space((LENGTH,), "float32"), Space((), "int64", 2))

    @staticmethod
    def step(row: int, action: int) -> tuple[float, bool]:
        """Returns reward and end that arrive with row `row` + 1."""
        return float(row == 1 and action == 1), row == 3 or (row == 2 and action == 1)

    def windows(self, B: int, T: int, rng: np.random.Generator) -> Batch:
        """Returns real rows (B, 1 + T, …); the row before the window is of another episode."""
        rows = {
            "obs": np.zeros((B, 1 + T, LENGTH), np.float32),
            "action": rng.integers(2, size=(B, 1 + T)),
            "reward": np.zeros((B, 1 + T), np.float32),
            **{name: np.zeros((B, 1 + T), bool) for name in ("first", "last", "terminal")},
        }
        self.index = np.zeros((B, T), int)
        for b in range(B):
            row, reward, end = 0, 0.0, False
            for t in range(1, 1 + T):
                rows["obs"][b, t, row] = 1
                rows["reward"][b, t], rows["first"][b, t] = reward, row == 0
                rows["last"][b, t] = rows["terminal"][b, t] = end
                self.index[b, t - 1] = row
                reward, following = self.step(row, rows["action"][b, t])
                row, reward, end = (0, 0.0, False) if end else (row + 1, reward, following)
        return {name: torch.from_numpy(value) for name, value in rows.items()}


@pytest.fixture(scope="module")
def counting_agent() -> tuple[BarlowDreamer, Counter, Batch, Batch]:
    """Returns an agent whose world model has learned the world of `Counter`, and its last rows."""
    agent = build_agent(Counter.spec, batch=8, window=10, lr=2e-3, lr_warmup=20)
    world, rng = Counter(), np.random.default_rng(0)
    sizes = agent.config.sizes
    for _ in range(200):
        rows = world.windows(8, 10, rng)
        rows["deter"] = torch.zeros(8, sizes.deter, dtype=torch.float16)
        rows["stoch"] = torch.zeros(8, sizes.groups, dtype=torch.uint8)
        _, latents, _ = agent.update_world(rows)
    return agent, world, rows, latents


def test_rewards_and_ends_of_dreams_arrive_when_the_real_ones_do(counting_agent):
    agent, world, rows, latents = counting_agent
    dreams = dream(agent, rows, latents)
    seen = {"reward": 0, "end": 0}
    errors: dict[str, list[float]] = {"reward": [], "cont": []}
    for i, index in enumerate(world.index.flatten()):
        row = int(index)
        if dreams["cont"][i, 0] == 0:
            continue  # nothing follows a terminal row
        for t in range(agent.config.dream_horizon):
            reward, end = Counter.step(row, int(dreams["action"][i, t]))
            errors["reward"].append(abs(dreams["reward"][i, t + 1].item() - reward))
            errors["cont"].append(abs(dreams["cont"][i, t + 1].item() - (not end)))
            seen["reward"] += reward == 1
            seen["end"] += end
            if end:
                break
            row += 1
    assert min(seen.values()) > 5
    for name, error in errors.items():
        assert np.mean(error) < 0.05, name
        assert np.mean(np.array(error) > 0.5) < 0.02, name


def test_open_loop_predictions_line_up_with_the_real_rows(counting_agent):
    agent, _, _, _ = counting_agent
    rows = Counter().windows(16, LENGTH, np.random.default_rng(1))
    window = {name: value[:, 1:] for name, value in rows.items()}
    before = F.pad(agent.encode(window["action"])[:, :-1], (0, 0, 1, 0))
    n, steps = window["reward"].shape
    with torch.no_grad():
        states, _, _ = agent.world.observe(
            window, before, agent.world.rssm.initial(n), agent.noise(n, steps, None)
        )
    window |= agent.stored(states)
    found = agent.predict(window, context=1)
    same_episode = ~window["first"][:, 1:] & (window["first"][:, 1:].cumsum(1) == 0)
    assert window["reward"][:, 1:][same_episode].sum() > 3
    assert window["terminal"][:, 1:][same_episode].sum() > 10
    for name, real in (("reward", window["reward"]), ("terminal", window["terminal"].float())):
        error = (torch.from_numpy(found[name]) - real[:, 1:]).abs()[same_episode]
        assert error.mean() < 0.05, name
        assert error.max() < 0.5, name
    assert found["kl"].shape == found["reward"].shape


def test_values_of_dreams_are_the_discounted_rewards_that_follow(counting_agent):
    """A uniform policy gets 1 at row 2 in half of all episodes: 1/2 at row 1, γ/2 at row 0."""
    agent, world, rows, latents = counting_agent
    agent = rebuilt(agent, gamma=0.5, lr=1e-2, slow_critic=0.2, entropy_weight=10.0)
    for _ in range(80):
        agent.update_policy(dream(agent, rows, latents))
    with torch.no_grad():
        value = agent.critic.mean(agent.restored(latents).features).flatten()
    index = torch.from_numpy(world.index.flatten())
    for row, expected in ((0, 0.25), (1, 0.5), (2, 0.0)):
        assert value[index == row].mean().item() == pytest.approx(expected, abs=0.08), row


def rebuilt(agent: BarlowDreamer, **options: float) -> BarlowDreamer:
    """Returns an agent with the same world model and other settings."""
    config = agent.config
    other = build_agent(
        Counter.spec,
        batch=config.batch,
        window=config.window,
        objective=config.objective,
        lr_warmup=0,
        **options,
    )
    other.load("world", agent.weights("world"))
    return other


# --------------------------------------------------------------------- the reference's figures


@pytest.mark.slow
def test_12m_has_the_parameters_of_r2dreamer_and_its_losses_at_initialisation():
    """11,848,209 parameters; losses as measured in R2-Dreamer on random rows."""
    spec = EnvSpec("Atari", Space((64, 64, 3), "uint8"), Space((), "int64", 18))
    agent = build_agent(spec, size="12M", batch=4, window=16)
    nets = (agent.world, agent.behaviour)
    assert sum(p.numel() for net in nets for p in net.parameters()) == 11_848_209
    rows = draw_rows(agent)
    rows["deter"].zero_()
    found = agent.world_loss(rows)
    terms = {name: term.item() for name, term in found.terms.items()}
    assert terms["loss/reward"] == pytest.approx(math.log(255), rel=1e-5)
    assert terms["loss/continue"] == pytest.approx(0.69, abs=0.3)  # a logit of ± 0.6
    assert terms["loss/prior"] == pytest.approx(10, abs=4)
    assert terms["loss/posterior"] == pytest.approx(0.1 * terms["loss/prior"], rel=1e-5)
    off_diagonal = 5e-4 * 1024**2 / 64  # of independent numbers over 64 rows
    assert terms["loss/objective"] / agent.config.objective_weight == pytest.approx(
        1024 + off_diagonal, rel=0.05
    )


def test_the_smallest_size_of_dreamerv3_has_its_number_of_parameters():
    spec = EnvSpec("Atari", Space((64, 64, 3), "uint8"), Space((), "int64", 18))
    agent = build_agent(spec, size="1M")
    nets = (agent.world, agent.behaviour)
    count = sum(parameter.numel() for net in nets for parameter in net.parameters())
    assert count == pytest.approx(0.77e6, rel=0.01)


# -------------------------------------------------------------------------- the target encoder


def test_the_target_of_the_objective_stays_the_embedding_of_the_encoder_before_any_update():
    agent = build_agent(IMAGES, target_encoder="initial")
    rows = draw_rows(agent)
    window = agent.window(rows)
    before = agent.world.encoder(window).detach().clone()
    targets = []
    agent.world.objective.register_forward_pre_hook(lambda _, inputs: targets.append(inputs[2]))
    for _ in range(3):
        agent.update_world(rows)
    for target in targets:
        assert torch.equal(target, before) and not target.requires_grad
    assert not torch.equal(agent.world.encoder(window), before)


@pytest.mark.parametrize("objective", ["reconstruction", "none"])
def test_objectives_without_embeddings_keep_no_second_encoder(objective):
    agent = build_agent(objective=objective, target_encoder="initial")
    assert agent.world.target_encoder is None
