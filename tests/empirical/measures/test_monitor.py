import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import empirical
import simulate
import theory
from empirical.data import batch_indices, load_data
from empirical.networks import build_network
from simulate.diagnosis.forecast import forecast

CONFIG = empirical.RunConfig(lr=0.3, wd=0.02, model="convnet", width=4, dtype="float64", steps=15, engine="eager")


def test_a_plain_torch_loop_with_a_monitor_measures_what_train_measures():
    data = load_data("digits", torch.float64, torch.device("cpu"))
    net = build_network(CONFIG, data.inputs, 10)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.3, weight_decay=0.02)
    monitor = empirical.Monitor(net, optimizer, data.inputs)
    for batch in torch.as_tensor(batch_indices(1437, 64, "without_replacement", 0, 0, 15)):
        loss = cross_entropy(net(data.inputs[batch]), data.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        monitor.before_step(loss)
        optimizer.step()
        monitor.after_step()
    recorded, run = monitor.trajectory(), empirical.train(CONFIG)
    for name in ("norm", "grad_norm", "effective_lr", "rotation", "loss", "group_norm", "group_grad_norm"):
        # float64, other order of sums
        np.testing.assert_allclose(recorded[name], run[name], rtol=1e-7, err_msg=name)
        assert recorded[name].attrs == run[name].attrs
    assert abs(simulate.replay(recorded).norm / recorded.norm - 1).max() < 1e-9
    assert recorded.final_norm.item() == pytest.approx(run.final_norm.item(), rel=1e-9)


def small():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01), torch.randn(16, 5)


def step(model, optimizer, inputs, monitor):
    loss = cross_entropy(model(inputs), torch.zeros(16).long())
    optimizer.zero_grad()
    loss.backward()
    monitor.before_step(loss)
    optimizer.step()
    monitor.after_step()


def test_a_changing_learning_rate_becomes_a_variable():
    model, optimizer, inputs = small()
    monitor = empirical.Monitor(model, optimizer, inputs)
    for lr in (0.1, 0.2):
        optimizer.param_groups[0]["lr"] = lr
        step(model, optimizer, inputs, monitor)
    assert monitor.trajectory().lr.values.tolist() == [0.1, 0.2]


def test_a_changing_weight_decay_becomes_a_variable():
    model, optimizer, inputs = small()
    monitor = empirical.Monitor(model, optimizer, inputs)
    for wd in (0.01, 0.01, 0.5):
        optimizer.param_groups[0]["weight_decay"] = wd
        step(model, optimizer, inputs, monitor)
    run = monitor.trajectory()
    assert run.wd.values.tolist() == [0.01, 0.01, 0.5]
    assert "wd" not in run.attrs
    outlook = monitor.forecast(rotation=0.05)
    assert (outlook.first_wd, outlook.wd, outlook.has_changed) == (0.01, 0.5, True)
    assert "wd went from 0.01 to 0.5" in str(outlook)
    assert theory.equilibrium_rotation(0.1, outlook.wd_for_rotation) == pytest.approx(0.05)
    assert simulate.classify(run, discard=0).verdict == "no clear period"
    np.testing.assert_allclose(simulate.replay(run).norm, run.norm, rtol=1e-5)


class TestUnexpectedSteps:
    def warnings_of(self, act, steps=3, **options):
        """Warnings of a loop that calls `act` between backward pass and step."""
        torch.manual_seed(0)
        model, optimizer, inputs = small()
        monitor = empirical.Monitor(model, optimizer, inputs)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(steps):
                optimizer.zero_grad()
                loss = cross_entropy(model(inputs), torch.zeros(16).long())
                (options.get("factor", 1.0) * loss).backward()
                act(model, lambda loss=loss: monitor.before_step(loss, scale=options.get("scale", 1.0)))
                optimizer.step()
                monitor.after_step()
                options.get("between", lambda: None)()
        return [str(warning.message) for warning in caught]

    def clip(self, model):
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    def test_gradients_clipped_too_late(self):
        (message,) = self.warnings_of(lambda model, record: (record(), self.clip(model)))
        assert re.search(r"changed by a factor 0\.0\d+ between the record and the step", message)
        assert self.warnings_of(lambda model, record: (self.clip(model), record())) == []

    def test_a_missing_or_repeated_scale(self):
        def unscaled(model, record):
            record()
            for p in model.parameters():
                p.grad /= 8

        assert len(self.warnings_of(unscaled, factor=8.0)) == 1
        assert self.warnings_of(unscaled, factor=8.0, scale=8.0) == []
        assert len(self.warnings_of(lambda _, record: record(), scale=8.0)) == 1

    def test_unrecorded_steps(self):
        model, optimizer, inputs = small()
        monitor = empirical.Monitor(model, optimizer, inputs)
        step(model, optimizer, inputs, monitor)
        optimizer.step()
        with pytest.warns(UserWarning, match="steps were not recorded"):
            step(model, optimizer, inputs, monitor)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_rounding_gives_no_warning(self, dtype):
        self.train_slowly(dtype)

    def test_a_decay_below_the_resolution_of_the_weights(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.train_slowly(torch.bfloat16)
        decay, unmoved = (str(warning.message) for warning in caught)
        assert re.search(r"weight decay does not arrive.* 1e-06 per step.*bfloat16", decay)
        assert "100% of the weights did not move" in unmoved

    def train_slowly(self, dtype):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(50, 80), nn.BatchNorm1d(80), nn.ReLU(), nn.Linear(80, 3)).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, weight_decay=0.01)
        inputs = torch.randn(16, 50, dtype=dtype)
        monitor = empirical.Monitor(model, optimizer, inputs, weights=["0.weight"])
        for _ in range(20):
            step(model, optimizer, inputs, monitor)


def test_misuse_is_named():
    model, optimizer, inputs = small()
    with pytest.raises(TypeError, match="optimizer must be"):
        empirical.Monitor(model, "SGD", inputs)
    with pytest.raises(ValueError, match="scale-invariant weights"):
        empirical.Monitor(nn.Linear(5, 3), optimizer, inputs)
    monitor = empirical.Monitor(model, optimizer, inputs)
    with pytest.raises(ValueError, match="at least one step"):
        monitor.trajectory()
    with pytest.raises(RuntimeError, match="before_step"):
        monitor.after_step()
    with pytest.raises(ValueError, match="must have a gradient"):
        monitor.before_step(0.0)
    with pytest.raises(ValueError, match="scale"):
        monitor.before_step(0.0, scale=0.0)
    with pytest.raises(ValueError, match="loss must be one number"):
        monitor.before_step(torch.zeros(16))
    with pytest.raises(ValueError, match=r"weights.*3\.weight"):
        empirical.Monitor(model, optimizer, inputs, weights=["3.weight"])
    with pytest.raises(TypeError, match="writer"):
        empirical.Monitor(model, optimizer, inputs, writer=3)
    with pytest.raises(ValueError, match="write_every"):
        empirical.Monitor(model, optimizer, inputs, write_every=0)
    with pytest.raises(ValueError, match="first_step"):
        empirical.Monitor(model, optimizer, inputs, first_step=-1)


def test_a_weight_that_is_invariant_only_with_its_bias_is_refused_alone():
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    groups = [{"params": [model[0].weight], "weight_decay": 0.1}, {"params": [model[0].bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    with pytest.raises(ValueError, match=r"weights.*0\.bias.*only together; got \['0\.weight'\]"):
        empirical.Monitor(model, optimizer, torch.randn(16, 5), weights=["0.weight"])


def test_an_optimizer_of_other_weights_is_refused():
    model, _, inputs = small()
    with pytest.raises(ValueError, match=r"optimizer.*none"):
        empirical.Monitor(model, torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), inputs)
    with pytest.raises(TypeError, match="optimizer must be"):
        empirical.Monitor(model, [], inputs)


def by_hand(model, names, lr):
    """Norm, g̃ and effective lr of these weights, from their gradients as they are."""
    parameters = dict(model.named_parameters())
    weights = torch.cat([parameters[name].detach().reshape(-1) for name in names]).double()
    slopes = torch.cat([parameters[name].grad.reshape(-1) for name in names]).double()
    norm = float(weights.norm())
    return norm, norm * float(slopes.norm()), lr / norm**2


def test_accumulated_gradients_and_a_scaler_that_skips():
    torch.manual_seed(0)
    model, optimizer, inputs = small()
    monitor = empirical.Monitor(model, optimizer, inputs)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    expected, skipped = [], 0
    for number in range(12):
        optimizer.zero_grad()
        total = 0.0
        for part in torch.randn(3, 8, 5):
            loss = cross_entropy(model(part), torch.arange(8) % 3) / 3
            scaler.scale(loss).backward()
            total += loss.item()
        # an overflow of half precision, once in a weight that is not watched
        if number == 4:
            model[0].weight.grad[0, 0] = torch.inf
        if number == 9:
            model[3].weight.grad[0, 0] = torch.inf
        scale = scaler.get_scale()
        monitor.before_step(total, scale=scaler)
        before = model[0].weight.detach().clone()
        if number not in (4, 9):
            norm, grad_norm, effective_lr = by_hand(model, ["0.weight"], 0.1)
            expected.append((norm, grad_norm / scale, effective_lr, total))
        scaler.step(optimizer)
        scaler.update()
        skipped += bool(torch.equal(before, model[0].weight))
        monitor.after_step()
    assert skipped == monitor.skipped == 2
    run = monitor.trajectory()
    assert run.attrs["skipped_steps"] == 2
    measured = np.stack([run[name].values for name in ("norm", "grad_norm", "effective_lr", "loss")], axis=1)
    np.testing.assert_allclose(measured, expected, rtol=1e-6)
    # skipped steps leave no gap: each norm follows from the one before
    np.testing.assert_allclose(simulate.replay(run).norm, run.norm, rtol=1e-5)


def test_parameters_may_be_frozen_loaded_replaced_or_reshaped():
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    model = nn.Sequential(
        nn.Linear(5, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        shared,
        nn.BatchNorm1d(8),
        shared,
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    monitor = empirical.Monitor(model, optimizer, torch.randn(16, 5))
    inputs, targets = torch.randn(16, 5), torch.arange(16) % 3

    def one():
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        monitor.before_step(loss)
        expected = math.sqrt(sum(float(model[i].weight.detach().double().square().sum()) for i in (0, 3)))
        optimizer.step()
        monitor.after_step()
        return expected

    expected = [one(), one()]
    # frozen: no gradient, no decay
    model[0].weight.requires_grad_(False)
    expected += [one(), one()]
    model[0].weight.requires_grad_(True)
    # other values, as from a checkpoint; and another object of the same name
    model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()})
    with pytest.warns(UserWarning, match="weights were loaded"):
        expected += [one()]
    model[0].weight = nn.Parameter(model[0].weight.detach() * 2)
    optimizer.add_param_group({"params": [model[0].weight], "lr": 0.1, "weight_decay": 0.01})
    expected += [one(), one()]
    run = monitor.trajectory()
    assert run.group.values.tolist() == ["0.weight", "3.weight"]
    np.testing.assert_allclose(run.norm.values, expected, rtol=1e-6)
    assert run.group_rotation.values[2, 0] == run.group_grad_norm.values[2, 0] == 0
    # another shape
    model[0] = nn.Linear(5, 8)
    model[0].weight = nn.Parameter(torch.randn(8, 4))
    model[3].weight.grad = torch.ones_like(model[3].weight)
    with pytest.warns(UserWarning, match=r"0\.weight.*shape"):
        monitor.before_step(1.0)
    monitor.after_step()
    last = monitor.trajectory().isel(step=-1)
    assert np.isnan(last.norm)
    assert np.isfinite(last.group_norm.values[1])
    with pytest.raises(ValueError, match="finite norms"):
        monitor.forecast()


def test_numbers_go_to_a_writer():
    class Writer(list):
        def add_scalar(self, tag, scalar_value, global_step):
            self.append((tag, scalar_value, global_step))

    model, optimizer, inputs = small()
    writer = Writer()
    monitor = empirical.Monitor(model, optimizer, inputs, writer=writer, write_every=2, first_step=7)
    for _ in range(5):
        step(model, optimizer, inputs, monitor)
    assert {at for _, _, at in writer} == {7, 9, 11}
    run = monitor.trajectory()
    assert run.step.values.tolist() == [7, 8, 9, 10, 11]
    for name in ("loss", "norm", "grad_norm", "rotation", "effective_lr"):
        values = [value for tag, value, _ in writer if tag == f"bnwd/{name}"]
        np.testing.assert_allclose(values, run[name].values[::2], rtol=1e-12, err_msg=name)
    assert [value for tag, value, _ in writer if tag == "bnwd/lr"] == [0.1] * 3
    assert {"bnwd/radial_defect", "bnwd/norm/0.weight", "bnwd/rotation/0.weight"} <= {tag for tag, _, _ in writer}


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), theory.SGD(momentum=0.9, nesterov=True)),
        (lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.95)), theory.AdamW(dim=40, betas=(0.8, 0.95))),
        (lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01), theory.Adam(dim=40)),
        (lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.01), None),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), None),
    ],
)
def test_the_optimizer_is_known(make, rule):
    model, _, inputs = small()
    optimizer = make(model.parameters())
    monitor = empirical.Monitor(model, optimizer, inputs)
    step(model, optimizer, inputs, monitor)
    step(model, optimizer, inputs, monitor)
    name = monitor.trajectory().attrs["optimizer"]
    assert name.startswith(type(optimizer).__name__) if rule is None else name == repr(rule)
    outlook = monitor.forecast(rotation=0.05)
    assert outlook.norm > 0
    assert "nan" not in str(outlook)
    assert ("equilibrium is not known for RMSprop" in str(outlook)) == (type(optimizer).__name__ == "RMSprop")
    # numbers are NaN if theory does not know the optimizer
    assert math.isnan(outlook.equilibrium_rotation) == (rule is None)
    assert math.isnan(outlook.earliest_angular_jump)
    assert str(outlook)


class Block(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(8), nn.RMSNorm(8)

    def forward(self, x):
        z = self.norm1(x)
        q, k, v = (layer(z).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(self.query_norm(q), self.key_norm(k), v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Small GPT with a weight in each of several kinds of groups."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 16), nn.Embedding(8, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 11, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


TOKENS = torch.randint(0, 11, (64, 8), generator=torch.Generator().manual_seed(0))


def train(model, optimizers, steps, schedule=lambda step: None, **options):
    """Train on next tokens and record; return the monitor, and norms of the watched weights by hand before steps."""
    monitor = empirical.Monitor(model, optimizers, TOKENS[:8], **options)
    parameters, norms = dict(model.named_parameters()), []
    generator = torch.Generator().manual_seed(0)
    for number in range(steps):
        batch = TOKENS[torch.randint(0, 64, (16,), generator=generator)]
        loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        monitor.before_step(loss)
        norms.append({name: float(p.detach().double().norm()) for name, p in parameters.items()})
        for optimizer in optimizers:
            optimizer.step()
        monitor.after_step()
        schedule(number)
    return monitor, norms


def nano_gpt(model):
    """One optimizer with decay for matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))]


def layer_decay(model):
    """Lower learning rates in earlier layers, as in fine-tuning with timm."""
    named = list(model.named_parameters())
    groups = [
        {
            "params": [p],
            "lr": 1e-2 * 0.7 ** (2 - (int(name.split(".")[1]) if name.startswith("blocks") else 0)),
            "weight_decay": 0.05 * (p.ndim > 1),
        }
        for name, p in named
    ]
    return [torch.optim.AdamW(groups)]


def muon_and_adamw(model):
    """Muon for the matrices of the blocks, AdamW for the rest."""
    hidden = [p for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    rest = [p for name, p in model.named_parameters() if not (name.startswith("blocks") and p.ndim == 2)]
    return [
        torch.optim.Muon(hidden, lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.1),
    ]


QUERIES = [f"blocks.{block}.{name}.weight" for block in (0, 1) for name in ("query", "key")]


@pytest.mark.parametrize("make", [nano_gpt, layer_decay, muon_and_adamw])
def test_groups_may_have_different_settings(make):
    torch.manual_seed(0)
    model = Transformer()
    optimizers = make(model)
    monitor, norms = train(model, optimizers, 300)
    run = monitor.trajectory()
    stream, *singles = run.group.values.tolist()
    assert singles == QUERIES
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name in QUERIES:
        own, weight = monitor.trajectory(name), model.get_parameter(name)
        np.testing.assert_allclose(own.norm, [at[name] for at in norms], rtol=1e-6)
        assert own.final_norm.item() == pytest.approx(float(weight.detach().double().norm()), rel=1e-6)
        assert (own.attrs["lr"], own.attrs["wd"]) == settings[id(weight)]
        outlook = monitor.forecast(name, steps_left=500)
        assert (outlook.lr, outlook.wd) == settings[id(weight)]
        assert outlook.optimizer.startswith("Muon" if make is muon_and_adamw else "AdamW(dim=256")
        assert outlook.norm_at_end > 0
    table = monitor.table()
    assert table.index.tolist() == [stream, *QUERIES]
    assert (
        table.weights == [sum(model.get_parameter(n).numel() for n in monitor.groups[stream].weights), *[256] * 4]
    ).all()
    np.testing.assert_allclose(table.norm, run.group_final_norm)
    # weights of a residual stream with other settings in each layer have no common law
    assert ("different settings" in table.remark[stream]) == (make is not nano_gpt)
    assert math.isnan(monitor.forecast(stream).equilibrium_norm) == (make is not nano_gpt)
    assert ("group_lr" in run) == (make is not nano_gpt)
    assert str(monitor.forecast())
    assert monitor.check_steps()[0].findings == ()


def test_a_group_with_a_small_part_of_other_settings_keeps_its_law():
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.mul_(0.1)
    groups = [{"params": [model[0].weight], "weight_decay": 0.1}, {"params": [model[0].bias], "weight_decay": 0.0}]
    for bias, wd, remark in ((0.05, 0.1, ""), (0.5, 0.1, "lr 0.01 and wd 0.1 for"), (10.0, 0.0, "")):
        with torch.no_grad():
            model[0].bias.fill_(bias)
        monitor = empirical.Monitor(model, torch.optim.SGD(groups, lr=0.01), torch.randn(16, 5))
        for _ in range(2):
            model(torch.randn(16, 5)).square().sum().backward()
            monitor.before_step(0.0)
            monitor.after_step()
        (row,) = monitor.table().itertuples()
        assert (row.lr, row.wd) == (0.01, wd)
        assert ("different settings" in row.remark) == bool(remark)
        assert remark in row.remark


@pytest.mark.parametrize("norms_only", [False, True])
@pytest.mark.parametrize("every", [1, 7])
def test_some_steps_or_norms_alone(every, norms_only):
    def recorded(**options):
        torch.manual_seed(0)
        model = Transformer()
        return train(model, nano_gpt(model), 50, **options)[0].trajectory()

    run, full = recorded(every=every, norms_only=norms_only), recorded()
    assert run.step.values.tolist() == list(range(0, 50, every))
    assert run.status_step == 50
    assert ("grad_norm" in run) == ("group_rotation" in run) == (not norms_only)
    rows = full.sel(step=run.step)
    for name in run.data_vars:
        if "step" in run[name].dims:
            np.testing.assert_allclose(run[name], rows[name], rtol=1e-6, err_msg=str(name))
    assert run.final_norm.item() == pytest.approx(full.final_norm.item(), rel=1e-6)


def test_an_unrecorded_step_costs_no_copy():
    model, optimizer, inputs = small()
    monitor = empirical.Monitor(model, optimizer, inputs, every=1000)
    step(model, optimizer, inputs, monitor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", None)
        loss = model(inputs).sum()
        monitor.before_step(loss)
        monitor.after_step()
    assert monitor.trajectory().status_step == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 300),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: max(0.0, 1 - step / 300)),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=301),
    ],
)
def test_a_scheduler_of_pytorch_is_followed_to_its_end(make):
    torch.manual_seed(0)
    model = Transformer()
    (optimizer,) = nano_gpt(model)
    scheduler = make(optimizer)
    monitor, _ = train(model, [optimizer], 200, lambda step: scheduler.step(), weights=[QUERIES[0]])
    before = scheduler.state_dict(), [group["lr"] for group in optimizer.param_groups]
    outlook = monitor.forecast(steps_left=100, schedule=scheduler)
    assert (scheduler.state_dict(), [group["lr"] for group in optimizer.param_groups]) == before
    lrs = [float(monitor.trajectory().lr[-1])]
    for _ in range(100):
        lrs.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert outlook.norm_at_end == pytest.approx(monitor.forecast(schedule=lrs).norm_at_end, rel=1e-3)


def test_weights_that_lose_their_invariance_have_no_equilibrium():
    torch.manual_seed(0)
    model, optimizer, inputs = small()
    monitor = empirical.Monitor(model, optimizer, inputs)
    model[1].eval()
    model[1].running_var.fill_(0.1)
    for _ in range(20):
        step(model, optimizer, inputs, monitor)
    outlook = monitor.forecast()
    assert math.isnan(outlook.equilibrium_norm)
    assert "not scale-invariant in training" in str(outlook)
    assert "not scale-invariant in training" in monitor.table().remark["0.weight"]


def test_the_reason_for_no_groups_is_named():
    class PostNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.head = nn.Linear(5, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            x = torch.tanh(self.first(x))
            return self.head(self.norm(x + self.branch(x)))

    model = PostNorm()
    with pytest.raises(ValueError, match="residual stream"):
        empirical.Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(16, 5))
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="add such a layer"):
        empirical.Monitor(plain, torch.optim.SGD(plain.parameters(), lr=0.1), torch.randn(16, 5))


def test_decoupled_adam_is_adamw_and_amsgrad_is_neither():
    def outlook(make):
        torch.manual_seed(0)
        model, _, inputs = small()
        optimizer = make(model.parameters())
        monitor = empirical.Monitor(model, optimizer, inputs)
        for _ in range(60):
            step(model, optimizer, inputs, monitor)
        return monitor.forecast()

    settings = {"lr": 1e-2, "weight_decay": 0.1}
    adamw = outlook(lambda p: torch.optim.AdamW(p, **settings))
    assert adamw == outlook(lambda p: torch.optim.Adam(p, decoupled_weight_decay=True, **settings))
    assert adamw.optimizer == "AdamW(dim=40)"
    amsgrad = outlook(lambda p: torch.optim.AdamW(p, amsgrad=True, **settings))
    assert amsgrad.optimizer == "AdamW(amsgrad=True)"
    assert math.isnan(amsgrad.equilibrium_norm)


class TestForecast:
    @pytest.mark.parametrize(
        ("norm", "steps", "heading"), [(8.0, 60, "falls"), (1.5, 20, "rises"), (2.7, 400, "settles")]
    )
    def test_it_goes_where_the_map_goes(self, norm, steps, heading):
        gradient = simulate.BoundedGradient(1.8, 2.2)
        run = simulate.norm_map(0.5, 0.02, gradient, norm=norm, steps=steps, seed=0)
        later = simulate.norm_map(0.5, 0.02, gradient, norm=norm, steps=2000, seed=0)
        outlook = forecast(run)
        assert outlook.heading == heading
        assert outlook.equilibrium_norm == pytest.approx(float(later.norm[-1000:].mean()), rel=0.05)
        near = np.abs(later.norm.values / outlook.equilibrium_norm - 1) < 0.05
        assert near[steps + int(outlook.steps_to_settle) + 50 :].all()
        assert heading in str(outlook)

    @pytest.mark.parametrize(
        ("rule", "grad_norm"),
        [
            (theory.SGD(), 2.0),
            (theory.SGD(momentum=0.9), 2.0),
            (theory.SGD(momentum=0.9, decoupled=True), 2.0),
            (theory.AdamW(dim=400, betas=(0.0, 0.95)), 2.0),
        ],
        ids=str,
    )
    def test_it_arrives_when_predicted_for_each_optimizer(self, rule, grad_norm):
        # independent gradients, from twice the equilibrium norm
        # ρ* is known after several memories of the momentum, if the norm changes slowly meanwhile
        lr, wd, now = 0.1, 0.01, 20 if rule == theory.SGD() else 150
        if rule == theory.SGD(momentum=0.9):
            wd = 0.001
        equilibrium = theory.equilibrium_norm(lr, wd, grad_norm, optimizer=rule)
        walk = {"dim": 400, "optimizer": rule, "seed": 0, "walkers": 1, "norm": 2 * equilibrium}
        run = simulate.random_walk(lr, wd, grad_norm, steps=6000, **walk).isel(batch=0)
        run = run.assign_attrs(optimizer=repr(rule), lr=lr, wd=wd)
        so_far = run.isel(step=slice(now)).assign(final_norm=run.norm[now])
        outlook = forecast(so_far)
        assert outlook.heading == "falls"
        # when 10 % of the distance are left, by the same law
        power = 2 if isinstance(rule, theory.AdamW) else 4
        decay = theory.free_decay(lr, wd, optimizer=rule)
        at = now + round(outlook.steps_to_settle - np.log(((1.1**power) - 1) / (0.01 * power)) / power / decay)
        late = float(run.norm[-2000:].mean())
        assert float(run.norm[at]) / late == pytest.approx(1.1, abs=0.05)

    @settings(deadline=None, derandomize=True, max_examples=20)
    @given(st.floats(0.0005, 0.05), st.integers(0, 1000), st.floats(0.02, 0.5))
    def test_no_angular_jump_is_earlier_than_the_earliest(self, intrinsic_lr, seed, delta):
        # random gradients with bursts
        generator = np.random.default_rng(seed)
        grad_norm = np.exp(generator.normal(size=3000)) * np.where(generator.random(3000) < 0.02, 20, 0.2)
        run = simulate.norm_map(0.5, intrinsic_lr / 0.5, simulate.RecordedGradient(grad_norm), norm=30.0, steps=3000)
        angular_jumps = np.flatnonzero(1 - np.cos(run.rotation.values) > delta)
        for now in (50, 500):
            outlook = forecast(
                run.isel(step=slice(now)).assign(final_norm=run.norm[now]),
                grad_norm_max=float(grad_norm.max()),
                delta=delta,
            )
            later = angular_jumps[angular_jumps >= now]
            if later.size:
                assert outlook.earliest_angular_jump <= later[0] - now
            if math.isinf(outlook.earliest_angular_jump):
                assert not later.size

    def test_free_decay_and_its_earliest_angular_jump(self):
        run = simulate.norm_map(0.5, 0.01, 0.05, norm=10.0, steps=300)
        outlook = forecast(run, grad_norm_max=2.0)
        assert outlook.growth < 0.01
        # the norm decays until the largest gradient makes an angular jump
        burst = simulate.norm_map(0.5, 0.01, 0.05, norm=float(run.final_norm), steps=5000)
        able = np.flatnonzero(1 - np.cos(theory.rotation(burst.norm.values, 0.5, 0.01, 2.0)) > 0.1)[0]
        assert outlook.earliest_angular_jump <= able <= outlook.earliest_angular_jump / 0.5 + 1

    def test_settings_for_a_rotation(self):
        run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.7, steps=500)
        outlook = forecast(run, rotation=0.05)
        assert theory.equilibrium_rotation(0.5, outlook.wd_for_rotation) == pytest.approx(0.05, rel=1e-9)
        assert theory.equilibrium_rotation(outlook.lr_for_rotation, 0.02) == pytest.approx(0.05, rel=1e-9)
        assert "For a rotation of 0.05 set wd =" in str(outlook)

    def test_without_decay_the_norm_rises_for_ever(self):
        outlook = forecast(simulate.norm_map(0.5, 0.0, 2.0, norm=2.7, steps=50))
        assert outlook.heading == "rises"
        assert outlook.steps_to_settle == outlook.equilibrium_norm == math.inf
        assert "without weight decay there is no equilibrium" in str(outlook)

    def test_below_equilibrium_it_does_not_fall_there(self):
        run = simulate.norm_map(0.5, 0.01, 0.05, norm=10.0, steps=300)
        assert "it reaches ρ* in" in str(forecast(run))
        # the last gradients are smaller than those before
        gradient = simulate.RecordedGradient(np.r_[np.full(80, 3.0), np.full(12, 0.05)])
        below = forecast(simulate.norm_map(0.5, 0.02, gradient, norm=3.2, steps=92))
        assert below.heading == "falls"
        assert below.norm < below.equilibrium_norm
        assert "It is below ρ* and still falls" in str(below)
        assert "it reaches ρ* in" not in str(below)

    def test_the_direction_is_that_of_the_last_steps(self):
        # up at first, then a long decay, all within one memory
        gradient = np.r_[np.full(20, 8.0), np.full(480, 1.0)]
        run = simulate.norm_map(0.5, 0.001, simulate.RecordedGradient(gradient), norm=1.5, steps=500)
        assert run.final_norm > run.norm[0]
        outlook = forecast(run)
        assert outlook.heading == "falls"
        assert outlook.growth < 0.7
        assert "The run is short: 25% of the memory of weight decay" in str(outlook)

    def test_a_changing_learning_rate_is_named(self):
        schedule = theory.Cosine(0.5, 1e-9, steps=2000)
        run = simulate.norm_map(schedule, 0.01, simulate.BoundedGradient(1.0, 3.0), norm=4.0, steps=1500, seed=0)
        outlook = forecast(run, rotation=0.02)
        assert outlook.has_changed
        assert outlook.first_lr > outlook.lr
        # growth and decay over all recent steps
        assert 0 < outlook.growth < 2
        assert theory.equilibrium_rotation(outlook.lr, outlook.wd_for_rotation) == pytest.approx(0.02)
        assert "lr went from" in str(outlook)
        assert "at the present lr" in str(outlook)
        assert "e+" not in str(outlook)
        # constant over the last memory
        schedule = theory.StepDecay(0.5, (500,), 0.2)
        run = simulate.norm_map(schedule, 0.05, 2.0, norm=4.0, steps=1000)
        assert not forecast(run).has_changed

    def test_at_equilibrium_but_rotating_less_it_stays_near(self):
        run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.66, steps=500)
        assert forecast(run).heading == "settles"
        slow = forecast(run.assign(rotation=0.5 * run.rotation))
        assert slow.heading == "stays near"
        assert "rotates less" in str(slow)

    def test_after_an_angular_jump_it_oscillates(self):
        gradient = np.tile(np.r_[60.0, np.full(200, 0.1)], 5)
        run = simulate.norm_map(0.5, 0.02, simulate.RecordedGradient(gradient), norm=2.0, steps=gradient.size)
        assert forecast(run).heading == "oscillates"

    @pytest.mark.parametrize("options", [{"delta": 1.0}, {"grad_norm_max": 0.0}, {"rotation": 2.0}])
    def test_bad_input(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            forecast(simulate.norm_map(0.5, 0.02, 2.0, norm=2.7, steps=50), **options)
        with pytest.raises(ValueError, match="at least two steps"):
            forecast(simulate.norm_map(0.5, 0.02, 2.0, norm=2.7, steps=1))


def random_run(number, widths, intrinsic_lrs):
    """A training with random settings: small networks settle, wide ones oscillate."""
    generator = np.random.default_rng(number)
    ranges = ((0.1, 1.6), intrinsic_lrs)
    lr, intrinsic_lr = (float(np.exp(generator.uniform(*np.log(ends)))) for ends in ranges)
    config = empirical.RunConfig(
        lr=lr,
        wd=intrinsic_lr / lr,
        width=int(generator.choice(widths)),
        seed=number,
        steps=round(20 / intrinsic_lr),
        evaluate_every=10**6,
    )
    return empirical.train(config), intrinsic_lr, generator


def errors_of_settled(runs):
    errors = []
    for number in range(runs):
        run, intrinsic_lr, generator = random_run(number, [4, 6, 8, 12, 16], (0.004, 0.02))
        now = round(generator.uniform(5, 9) / intrinsic_lr)
        outlook = forecast(run.isel(step=slice(now)).assign(final_norm=run.norm[now]))
        if outlook.heading == "settles":
            errors.append(outlook.equilibrium_norm / float(np.exp(np.log(run.norm[now:]).mean())) - 1)
    return np.abs(errors)


@pytest.mark.parametrize("runs", [10, pytest.param(50, marks=pytest.mark.acceptance)])
def test_where_real_training_settles(runs):
    errors = errors_of_settled(runs)
    assert errors.size > runs / 2
    # some networks learn on after a long equilibrium, and their gradients shrink: no forecast can know
    assert np.mean(errors < 0.05) >= 0.95


def periodic_run(number):
    """A periodic training of an MLP, a ConvNet, or an MLP under full batches, with random settings."""
    generator = np.random.default_rng(2000 + number)
    kind = ("mlp", "convnet", "full batch")[generator.integers(3)]
    intrinsic_lr, lr = (float(np.exp(generator.uniform(*np.log(ends)))) for ends in ((5e-4, 4e-3), (0.1, 1.6)))
    kinds = {
        "mlp": {"width": int(generator.choice([64, 96, 128]))},
        "convnet": {"model": "convnet", "width": int(generator.choice([5, 6, 8]))},
        "full batch": {
            "width": int(generator.choice([48, 64, 96])),
            "samples": int(generator.choice([200, 300, 400])),
            "sampling": "full_batch",
        },
    }
    settings = {
        "lr": lr,
        "wd": intrinsic_lr / lr,
        "seed": number,
        "steps": round(15 / intrinsic_lr),
        "evaluate_every": 10**6,
    }
    return empirical.train(empirical.RunConfig(**settings, **kinds[kind])), generator


@pytest.mark.parametrize("runs", [4, pytest.param(50, marks=pytest.mark.acceptance)])
def test_earliest_angular_jump_of_real_decay_phases(runs):
    shares = []
    for number in range(runs):
        run, generator = periodic_run(number)
        periods, norm = simulate.find_periods(run), run.norm.values
        if periods.count < 2:
            continue
        angular_jumps = np.flatnonzero(1 - np.cos(run.rotation.values) > 0.1)
        chosen = generator.integers(periods.count)
        first, last = periods.onsets[chosen], periods.onsets[chosen + 1]
        peak = first + int(np.argmax(norm[first:last])) + 1
        later = angular_jumps[angular_jumps > peak]
        if not later.size:
            continue
        limit = float(run.grad_norm.values[peak : later[0] + 1].max())
        outlook = forecast(run.isel(step=slice(peak)).assign(final_norm=run.norm[peak]), grad_norm_max=limit)
        assert outlook.earliest_angular_jump <= later[0] - peak
        shares.append(outlook.earliest_angular_jump / (later[0] - peak))
    assert len(shares) > runs / 2
    # a bound, and a loose one where decay phases are shallow: the median of 50 is 0.4
    assert (0.3 if runs >= 50 else 0) < np.median(shares) <= 1


class TestSchedules:
    def monitor(self, make, *, steps, every=1, groups=None, lr=0.5):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        )
        groups = [{"params": [model[0].weight]}, {"params": [model[3].weight]}]
        optimizer = torch.optim.SGD(groups, lr=lr, weight_decay=0.1)
        scheduler = make(optimizer)
        inputs = torch.randn(16, 5)
        monitor = empirical.Monitor(model, optimizer, inputs, every=every)
        for _ in range(steps):
            loss = cross_entropy(model(torch.randn(16, 5)), torch.arange(16) % 3)
            optimizer.zero_grad()
            loss.backward()
            monitor.before_step(loss)
            optimizer.step()
            monitor.after_step()
            scheduler.step()
        return monitor, optimizer, scheduler

    def test_a_drop_right_after_the_last_step(self):
        monitor, _, scheduler = self.monitor(lambda o: torch.optim.lr_scheduler.StepLR(o, 100, 0.01), steps=100)
        outlook = monitor.forecast(steps_left=100, schedule=scheduler)
        by_hand = monitor.forecast(schedule=[0.5] + [0.005] * 100)
        assert outlook.norm_at_end == pytest.approx(by_hand.norm_at_end, rel=1e-9)

    def test_each_group_has_its_own_schedule(self):
        factors = [lambda step: 1.0, lambda step: 1 - step / 200]
        monitor, _, scheduler = self.monitor(lambda o: torch.optim.lr_scheduler.LambdaLR(o, factors), steps=100, lr=0.1)
        for name, lrs in (("0.weight", [1.0] * 101), ("3.weight", [1 - (99 + ahead) / 200 for ahead in range(101)])):
            outlook = monitor.forecast(name, steps_left=100, schedule=scheduler)
            assert outlook.norm_at_end == pytest.approx(monitor.forecast(name, schedule=lrs).norm_at_end, rel=1e-3)

    @pytest.mark.parametrize(
        "make",
        [
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, (1 + step) / 1000)),
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.001, 1.0, total_iters=999),
        ],
    )
    def test_warm_up_with_some_steps_recorded(self, make):
        monitor, _, scheduler = self.monitor(make, steps=140, every=50)
        outlook = monitor.forecast("0.weight", steps_left=1000, schedule=scheduler, rotation=0.05)
        assert outlook.highest_lr == pytest.approx(0.5, rel=1e-6)

    def test_a_learning_rate_in_a_tensor_stays(self):
        monitor, optimizer, scheduler = self.monitor(
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100), steps=20, lr=torch.tensor(0.1)
        )
        before = float(optimizer.param_groups[0]["lr"])
        monitor.forecast(steps_left=80, schedule=scheduler)
        assert float(optimizer.param_groups[0]["lr"]) == before

    def test_a_schedule_that_depends_on_the_training_is_refused(self):
        monitor, optimizer, _ = self.monitor(lambda o: torch.optim.lr_scheduler.StepLR(o, 100), steps=2)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        with pytest.raises(ValueError, match=r"schedule.*ReduceLROnPlateau"):
            monitor.forecast(steps_left=10, schedule=plateau)
        with pytest.raises(ValueError, match="steps_left"):
            monitor.forecast(schedule=torch.optim.lr_scheduler.StepLR(optimizer, 100))


def test_random_numbers_of_other_devices_do_not_change(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    model, optimizer, inputs = small()
    empirical.Monitor(model, optimizer, inputs)
    assert seeds == []


def test_a_frozen_group_has_a_row_with_the_reason():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    monitor, inputs = empirical.Monitor(model, optimizer, torch.randn(16, 5)), torch.randn(16, 5)
    model[0].weight.requires_grad_(False)
    for _ in range(30):
        step(model, optimizer, inputs, monitor)
    table = monitor.table()
    assert table.remark["0.weight"]
    assert table.norm["0.weight"] == pytest.approx(float(model[0].weight.norm()))
    assert table.rotation["3.weight"] > 0


def test_a_scaler_is_read_at_recorded_steps_only():
    class Scaler:
        calls = 0

        def get_scale(self):
            self.calls += 1
            return 1.0

    model, optimizer, inputs = small()
    monitor, scaler = empirical.Monitor(model, optimizer, inputs, every=10, first_step=5), Scaler()
    for _ in range(20):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), torch.zeros(16).long())
        loss.backward()
        monitor.before_step(loss, scale=scaler)
        optimizer.step()
        monitor.after_step()
    assert scaler.calls == 2
    run = monitor.trajectory()
    assert run.step.values.tolist() == [10, 20]
    assert run.status_step == 25


def test_a_shared_embedding_is_named():
    class Tied(nn.Module):
        def __init__(self, is_tied):
            super().__init__()
            self.embedding, self.inner = nn.Embedding(10, 16), nn.Linear(16, 16, bias=False)
            self.norm, self.head = nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 10, bias=False)
            if is_tied:
                self.head.weight = self.embedding.weight

        def forward(self, tokens):
            stream = self.embedding(tokens)
            return self.head(self.norm(stream + self.inner(stream)))

    tokens = torch.randint(10, (4, 8))
    with pytest.raises(ValueError, match=r"got none\. embedding\.weight and head\.weight are one tensor"):
        empirical.Monitor(Tied(True), torch.optim.AdamW(Tied(True).parameters()), tokens)
    model = Tied(False)
    monitor = empirical.Monitor(model, torch.optim.AdamW(model.parameters()), tokens)
    assert [set(group.weights) for group in monitor.groups.values()] == [{"embedding.weight"}]
