import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import theory
from empirical.config import RunConfig
from empirical.data import batch_indices, load_data
from empirical.groups import scale_invariant_groups
from empirical.networks import build_network
from empirical.steps import ENGINES, Hyper, Layout, Problem, State, chosen_engine

LR, WD, STEPS = 0.3, 0.05, 12


def problem(model="mlp", dtype="float64", optimizer=None, width=8, **settings):
    config = RunConfig(lr=LR, wd=WD, model=model, width=width, dtype=dtype, **settings)
    data = load_data("digits", getattr(torch, dtype), torch.device("cpu"))
    net = build_network(config, data.inputs, 10)
    groups = {name: g.weights for name, g in scale_invariant_groups(net, data.inputs).items()}
    return Problem(net, Layout.of(net, groups), data.inputs, data.targets, optimizer or theory.SGD())


def hyper(steps, replicas=1, lr=LR, other=None):
    rates = torch.full((replicas, steps), lr, dtype=torch.float64)
    other_rates = rates if other is None else torch.full_like(rates, other)
    return Hyper(rates, other_rates, torch.full((replicas,), WD, dtype=torch.float64))


def batches(steps, *data_seeds):
    rows = [batch_indices(1437, 32, "without_replacement", seed, 0, steps) for seed in data_seeds or (0,)]
    return torch.as_tensor(np.stack(rows))


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def engine(request):
    def made(task):
        try:
            return request.param(task)
        except ValueError as error:
            pytest.skip(str(error))

    return made


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("scale_invariant", [True, False])
def test_steps_are_those_of_torch_and_telemetry_those_of_plain_vectors(engine, model, scale_invariant):
    task = problem(model, scale_invariant=scale_invariant)
    indices = batches(STEPS)
    state, rows = engine(task).advance(State.of(task), hyper(STEPS), indices)
    net = task.model
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=LR, weight_decay=WD)
    measured = [net.get_parameter(name) for name in task.layout.places if name in task.layout.groups]
    for t in range(STEPS):
        loss = cross_entropy(net(task.inputs[indices[0, t]]), task.targets[indices[0, t]])
        optimizer.zero_grad()
        loss.backward()
        x = torch.cat([p.detach().reshape(-1) for p in measured]).clone()
        g = torch.cat([p.grad.reshape(-1) for p in measured]).clone()
        optimizer.step()
        after = torch.cat([p.detach().reshape(-1) for p in measured])
        row = rows[0, t]
        # float64: rounding differs in the order of sums only
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert row["norm"] == pytest.approx(x.norm().item(), rel=1e-9)
        assert row["next_norm"] == pytest.approx(after.norm().item(), rel=1e-9)
        assert row["grad_norm"] == pytest.approx((x.norm() * g.norm()).item(), rel=1e-8)
        cosine = (x @ after / x.norm() / after.norm()).clamp(-1, 1)
        # the arc cosine loses half of the digits for small angles
        assert row["rotation"] == pytest.approx(torch.arccos(cosine).item(), abs=1e-7)
        assert row["radial_defect"] == pytest.approx(abs(x @ g / x.norm() / g.norm()).item(), abs=1e-9)
        assert row["radial_defect"] < 1e-8
        for i in range(len(measured)):
            assert row["group_norm"][i] ** 2 <= row["norm"] ** 2 * (1 + 1e-12)
        assert np.sum(row["group_norm"] ** 2) == pytest.approx(row["norm"] ** 2, rel=1e-12)
        assert row["lr"] == LR
    trained = dict(net.named_parameters())
    flat = torch.cat([trained[name].detach().reshape(-1) for name in task.layout.places])
    torch.testing.assert_close(state.weights[0], flat, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cuts", [[5, 7], [1] * STEPS, [11, 1]])
def test_cutting_the_steps_changes_nothing(engine, cuts):
    task, indices = problem(dtype="float32"), batches(STEPS)
    whole, rows = engine(task).advance(State.of(task), hyper(STEPS), indices)
    state, parts, at = State.of(task), [], 0
    cutter = engine(task)
    for count in cuts:
        state, part = cutter.advance(state, hyper(count), indices[:, at : at + count])
        parts.append(part)
        at += count
    assert torch.equal(state.weights, whole.weights)
    assert np.concatenate(parts, axis=1).tobytes() == rows.tobytes()


def test_arguments_are_not_changed(engine):
    task, indices = problem(), batches(STEPS)
    state = State.of(task)
    before = state.weights.clone()
    engine(task).advance(state, hyper(STEPS), indices)
    assert torch.equal(state.weights, before)
    assert torch.equal(State.of(task).weights, before)


def test_replicas_are_independent_runs(engine):
    task = problem()
    one = State.of(task)
    seeds, scales = (1, 2, 3), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    many = State(one.weights * scales[:, None], {n: b.repeat(3, *[1] * (b.ndim - 1)) for n, b in one.buffers.items()})
    settings = hyper(STEPS, replicas=3)
    settings.lr[1] = 0.1
    state, rows = engine(task).advance(many, settings, batches(STEPS, *seeds))
    for k, seed in enumerate(seeds):
        own = Hyper(settings.lr[k : k + 1], settings.lr[k : k + 1], settings.wd[k : k + 1])
        alone, alone_rows = engine(task).advance(State(many.weights[k : k + 1], one.buffers), own, batches(STEPS, seed))
        torch.testing.assert_close(state.weights[k], alone.weights[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rows[k]["loss"], alone_rows[0]["loss"], rtol=1e-9)


def test_other_weights_move_with_their_own_rate(engine):
    task = problem(scale_invariant=False)
    state, _ = engine(task).advance(State.of(task), hyper(STEPS, other=0.0), batches(STEPS))
    measured = task.layout.measured
    assert torch.equal(state.weights[:, measured:], State.of(task).weights[:, measured:])
    assert not torch.equal(state.weights[:, :measured], State.of(task).weights[:, :measured])


@pytest.mark.parametrize(
    "rule",
    [theory.SGD(momentum=0.9), theory.SGD(momentum=0.9, nesterov=True), theory.Adam(dim=1), theory.AdamW(dim=1)],
    ids=repr,
)
@pytest.mark.parametrize("scale_invariant", [True, False])
def test_every_optimizer_is_that_of_torch(engine, rule, scale_invariant):
    lr, wd = 0.01, 0.05
    task, indices = problem(optimizer=rule, scale_invariant=scale_invariant), batches(STEPS)
    rates = torch.full((1, STEPS), lr, dtype=torch.float64)
    state = State.of(task)
    cutter = engine(task)
    for part in (slice(0, 5), slice(5, STEPS)):
        now = Hyper(rates[:, part], rates[:, part], torch.tensor([wd], dtype=torch.float64))
        state, _ = cutter.advance(state, now, indices[:, part])
    net = task.model
    trained = [p for p in net.parameters() if p.requires_grad]
    if isinstance(rule, theory.SGD):
        optimizer = torch.optim.SGD(trained, lr=lr, weight_decay=wd, momentum=rule.momentum, nesterov=rule.nesterov)
    else:
        optimizer = getattr(torch.optim, type(rule).__name__)(trained, lr=lr, weight_decay=wd, eps=rule.eps)
    for t in range(STEPS):
        loss = cross_entropy(net(task.inputs[indices[0, t]]), task.targets[indices[0, t]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    flat = torch.cat([dict(net.named_parameters())[name].detach().reshape(-1) for name in task.layout.places])
    torch.testing.assert_close(state.weights[0], flat, rtol=1e-6, atol=1e-9)


def one_step(name, task, indices):
    start = State.of(task)
    state, rows = ENGINES[name](task).advance(start, hyper(1), indices[:, :1])
    return state.weights - start.weights, rows


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("eps", [1e-12, 1e-3])
@pytest.mark.parametrize(("model", "width"), [("mlp", 8), ("convnet", 8), ("convnet", 3)])
def test_the_compiled_step_is_the_eager_one(model, width, dtype, tolerance, eps):
    for seed in range(5):
        task = problem(model, dtype=dtype, norm_eps=eps, seed=seed, width=width)
        indices = batches(1, seed)
        (eager, rows), (compiled, compiled_rows) = (one_step(name, task, indices) for name in ("eager", "kernel"))
        assert (eager - compiled).norm() <= tolerance * eager.norm()
        for name in rows.dtype.names:
            # the defect is all rounding
            margin = {"atol": 1e-5 if dtype == "float32" else 1e-12} if "defect" in name else {"rtol": 10 * tolerance}
            np.testing.assert_allclose(compiled_rows[name], rows[name], **{"rtol": 0, **margin})


def test_the_fastest_engine_is_chosen_and_others_are_refused_by_name():
    assert chosen_engine(problem()) == chosen_engine(problem("convnet")) == "kernel"
    for other in (
        problem(scale_invariant=False),
        problem(optimizer=theory.SGD(momentum=0.9)),
        problem(scale_invariant=False, normalization="none"),
    ):
        assert chosen_engine(other) == "eager"
        with pytest.raises(ValueError, match="got 'kernel', but"):
            ENGINES["kernel"](other)
    look_alike = problem()
    look_alike.model.relu1 = torch.nn.GELU()
    assert chosen_engine(look_alike) == "eager"
    look_alike = problem("convnet")
    look_alike.model.conv2.stride = (2, 2)
    assert chosen_engine(look_alike) == "eager"


def test_a_loss_that_overflows_is_not_hidden():
    task = problem(dtype="float32")
    state = State.of(task)
    state.weights[:] = torch.inf
    for name in ENGINES:
        _, rows = ENGINES[name](task).advance(state, hyper(2), batches(2))
        assert not np.isfinite(rows["loss"]).any()
