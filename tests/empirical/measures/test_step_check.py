"""The optimizers of torch are the oracle: their steps give no finding, and planted faults do."""

import itertools
import math
import re

import pytest
import torch
from torch import nn, optim

import theory
from empirical.measures.step_check import StepCheck, inner_optimizer, rule_of

SHAPES = ((48, 32), (32,), (24, 40))
MATRICES = ((48, 32), (24, 40))


class Lion(optim.Optimizer):
    """Lion as published (arXiv 2302.06675)."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, sign=True):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.sign = sign

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                (beta1, beta2), lr = group["betas"], group["lr"]
                p.mul_(1 - lr * group["weight_decay"])
                blend = beta1 * mean + (1 - beta1) * p.grad
                p.add_(blend.sign() if self.sign else blend, alpha=-lr)
                mean.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class Muon(optim.Optimizer):
    """Muon as in Keller Jordan's repository; `decay` multiplies its weight decay."""

    def __init__(self, params, lr=1e-3, weight_decay=1e-2, momentum=0.95, decay=1.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.decay = decay

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp_(buffer, group["momentum"]).bfloat16()
                x = x.mT if p.size(0) > p.size(1) else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = (x.mT if p.size(0) > p.size(1) else x).to(p.dtype)
                p.mul_(1 - group["lr"] * group["weight_decay"] * self.decay)
                p.add_(x, alpha=-group["lr"] * max(1, p.size(0) / p.size(1)) ** 0.5)


class Loop:
    """Steps with random gradients; every n-th is checked."""

    def __init__(self, make, shapes=SHAPES, dtype=torch.float32, every=10, scaler=None):
        torch.manual_seed(0)
        self.weights = {f"w{i}": nn.Parameter((torch.randn(s) / s[-1] ** 0.5).to(dtype)) for i, s in enumerate(shapes)}
        self.optimizer, self.check = make(list(self.weights.values())), StepCheck()
        self.every, self.scaler, self.number = every, scaler, 0

    def run(self, steps=200, act=None, late=None, scheduler=None, scale=None):
        for _ in range(steps):
            factor = 1.0 if self.scaler is None else self.scaler.get_scale()
            for p in self.weights.values():
                size = 0.1 * factor * math.exp(0.5 * torch.randn(()))
                p.grad = size * torch.randn(p.shape).to(p.dtype)
            if self.scaler is not None:
                self.scaler.scale(torch.zeros(()))
            if act is not None:
                act(self.weights.values())
            checked = self.number % self.every == 0
            if checked:
                before = {name: p.detach().clone() for name, p in self.weights.items()}
                self.check.before(self.optimizer, self.weights, scale=factor if scale is None else scale)
            if late is not None:
                late(self.weights.values())
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            if checked:
                self.check.after(before)
            if scheduler is not None:
                scheduler.step()
            self.number += 1
        return self.check.report()


def assert_fine(report, least_checks=20):
    assert report.findings == ()
    for group in report.groups:
        assert group.checks >= least_checks, group
        assert group.deviation < 1e-3 or math.isnan(group.deviation)
        assert group.unmoved_share < 0.01
        if group.intrinsic_lr > 0:
            assert group.decay_share == pytest.approx(1, abs=0.05)


UPDATES = {
    "SGD": (optim.SGD, {"lr": 0.01, "weight_decay": 1e-3}),
    "momentum": (optim.SGD, {"lr": 0.01, "weight_decay": 1e-3, "momentum": 0.9}),
    "dampening": (optim.SGD, {"lr": 0.01, "weight_decay": 1e-3, "momentum": 0.9, "dampening": 0.5}),
    "Nesterov": (optim.SGD, {"lr": 0.01, "weight_decay": 1e-3, "momentum": 0.9, "nesterov": True}),
    "Nesterov without decay": (optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "Adam": (optim.Adam, {"lr": 1e-3, "weight_decay": 1e-2}),
    "Adam without decay": (optim.Adam, {"lr": 1e-3, "betas": (0.8, 0.95)}),
    "decoupled Adam": (optim.Adam, {"lr": 1e-3, "weight_decay": 1e-2, "decoupled_weight_decay": True}),
    "AMSGrad": (optim.Adam, {"lr": 1e-3, "weight_decay": 1e-2, "amsgrad": True}),
    "AdamW": (optim.AdamW, {"lr": 1e-3, "weight_decay": 1e-2, "eps": 1e-3}),
    "AMSGrad W": (optim.AdamW, {"lr": 1e-3, "weight_decay": 1e-2, "amsgrad": True}),
}
FORMS = ({}, {"foreach": True}, {"fused": True}, {"maximize": True}, {"maximize": True, "foreach": True})


class TestOrdinarySteps:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("form", FORMS, ids=str)
    @pytest.mark.parametrize("update", UPDATES)
    def test_of_torch(self, update, form, dtype):
        kind, settings = UPDATES[update]
        assert_fine(Loop(lambda p: kind(p, **settings, **form), dtype=dtype).run())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
    @pytest.mark.parametrize("nesterov", [True, False])
    def test_of_muon(self, nesterov, adjust, dtype):
        def make(p):
            return optim.Muon(p, lr=1e-3, weight_decay=1e-2, nesterov=nesterov, adjust_lr_fn=adjust)

        assert_fine(Loop(make, MATRICES, dtype, every=5).run(100))

    def test_of_user_defined_optimizers(self):
        loop = Loop(lambda p: Lion(p, lr=1e-3, weight_decay=1e-2))
        assert_fine(loop.run())
        assert loop.check.follows_rule(0)
        loop = Loop(lambda p: Muon(p), MATRICES)
        assert_fine(loop.run())
        assert loop.check.follows_rule(0) is None

    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize("update", ["SGD", "momentum", "Nesterov", "Adam", "AdamW"])
    def test_with_a_gradient_scaler(self, update, fused):
        kind, settings = UPDATES[update]
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
        assert_fine(Loop(lambda p: kind(p, **settings, fused=fused), scaler=scaler).run())

    @pytest.mark.parametrize("update", ["momentum", "Nesterov", "Adam", "AdamW"])
    def test_with_cycles_of_lr_and_momentum(self, update):
        kind, settings = UPDATES[update]
        loop = Loop(lambda p: kind(p, **settings), every=7)
        report = loop.run(300, scheduler=optim.lr_scheduler.OneCycleLR(loop.optimizer, 0.01, total_steps=400))
        assert_fine(report)

    def test_with_parameter_groups_and_tensors_as_settings(self):
        def make(p):
            groups = [{"params": p[:1], "weight_decay": 0.1}, {"params": p[1:], "weight_decay": 0.0}]
            return optim.AdamW(groups, lr=torch.tensor(1e-3), foreach=False)

        report = Loop(make).run()
        assert_fine(report)
        assert [group.intrinsic_lr for group in report.groups] == pytest.approx([1e-4, 0.0])

    def test_that_overflow(self):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        loop = Loop(lambda p: optim.AdamW(p, lr=1e-3), every=1, scaler=scaler)
        numbers = itertools.count()

        def overflow(weights):
            if next(numbers) % 3 == 0:
                next(iter(weights)).grad[0] = torch.inf

        assert_fine(loop.run(60, act=overflow))

    def test_of_weights_without_gradient(self):
        loop = Loop(lambda p: optim.AdamW(p, lr=1e-3, weight_decay=1e-2))

        def forget(weights):
            next(iter(weights)).grad = None

        assert_fine(loop.run(act=forget))
        loop = Loop(lambda p: optim.AdamW([{"params": p[:1]}, {"params": p[1:]}], lr=1e-3))
        first, second = loop.run(act=forget).groups
        assert "gradient" in first.reason
        assert (first.checks, second.checks) == (0, 20)

    def test_with_constant_gradients_are_not_clipped(self):
        def constant(weights):
            for p in weights:
                p.grad = torch.ones_like(p)

        assert_fine(Loop(lambda p: optim.SGD(p, lr=1e-3)).run(act=constant))


def with_decay_times(kind, factor):
    """Subclass of an optimizer that multiplies its weight decay during the step."""

    class Faulty(kind):
        def step(self, closure=None):
            for group in self.param_groups:
                group["weight_decay"] *= factor
            super().step()
            for group in self.param_groups:
                group["weight_decay"] = 1e-2

    Faulty.__name__ = kind.__name__
    return Faulty


class TestFaults:
    @pytest.mark.parametrize("factor", [0.0, 2.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        ("kind", "settings"),
        [
            (optim.SGD, {}),
            (optim.SGD, {"momentum": 0.9}),
            (optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
            (optim.SGD, {"momentum": 0.9, "nesterov": True}),
            (optim.Adam, {}),
            (optim.Adam, {"amsgrad": True}),
            (optim.AdamW, {}),
            (optim.AdamW, {"fused": True}),
            (optim.Muon, {}),
            (Lion, {}),
        ],
    )
    def test_a_decay_of_1e_5_that_is_missing_or_doubled_is_found_in_200_steps(self, kind, settings, dtype, factor):
        def make(p):
            return with_decay_times(kind, factor)(p, lr=1e-3, weight_decay=1e-2, **settings)

        report = Loop(make, MATRICES, dtype).run()
        (message,) = report.findings
        assert "1e-05" in message
        assert "20 checked steps" in message
        assert report.groups[0].decay_share == pytest.approx(factor, abs=0.01)

    @pytest.mark.parametrize("decay", [0.0, 2.0])
    def test_a_wrong_decay_of_a_user_defined_muon(self, decay):
        report = Loop(lambda p: Muon(p, weight_decay=0.1, decay=decay), MATRICES).run()
        assert len(report.findings) == 1
        assert report.groups[0].decay_share == pytest.approx(decay, abs=0.1)

    def test_bfloat16_loses_the_decay_and_small_steps(self):
        report = Loop(lambda p: optim.AdamW(p, lr=1e-3, weight_decay=1e-2), ((256, 256),), torch.bfloat16).run()
        assert abs(report.groups[0].decay_share) < 0.1
        assert report.groups[0].unmoved_share == pytest.approx(0.38, abs=0.05)
        decay, unmoved = report.findings
        assert "0.4 %" in decay
        assert "bfloat16" in decay
        assert f"{report.groups[0].unmoved_share:.0%}" in unmoved

    def test_weights_of_higher_precision_keep_the_decay(self):
        assert_fine(Loop(lambda p: optim.AdamW(p, lr=1e-3, weight_decay=1e-2), ((256, 256),)).run())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_clipping(self, dtype):
        def make(p):
            return optim.AdamW(p, lr=0.01 if dtype == torch.bfloat16 else 1e-3, weight_decay=0)

        report = Loop(make, dtype=dtype).run(act=lambda weights: nn.utils.clip_grad_norm_(weights, 1.0))
        assert report.clip_norm == pytest.approx(1, rel=0.01)
        assert report.clip_norm_share > 0.9
        # Adam divides a common factor out
        assert not any("clipping" in text for text in report.findings)
        sgd = Loop(lambda p: optim.SGD(p, lr=1e-2), dtype=dtype)
        findings = sgd.run(act=lambda weights: nn.utils.clip_grad_norm_(weights, 1.0)).findings
        assert any(re.search(r"clipping at 1(\.0\d*)? ", text) for text in findings)
        report = Loop(make, dtype=dtype).run(act=lambda weights: nn.utils.clip_grad_value_(weights, 0.125))
        assert (report.clip_value, report.clip_value_share) == (0.125, 1.0)
        report = Loop(make, dtype=dtype).run(act=lambda weights: nn.utils.clip_grad_norm_(weights, 100.0))
        assert math.isnan(report.clip_norm) or report.clip_norm_share < 0.5 or dtype == torch.bfloat16

    def test_a_mask_that_freezes_half_of_the_weights(self):
        class Masked(optim.AdamW):
            def step(self, closure=None):
                weights = [p for group in self.param_groups for p in group["params"]]
                before = [p.detach().clone() for p in weights]
                super().step()
                with torch.no_grad():
                    for p, old in zip(weights, before, strict=True):
                        p.view(-1)[::2] = old.view(-1)[::2]

        report = Loop(lambda p: Masked(p, lr=1e-3)).run(60)
        assert report.groups[0].unmoved_share == pytest.approx(0.5, abs=0.01)
        assert any("50%" in text for text in report.findings)

    def test_noise_after_the_step(self):
        class Noisy(optim.AdamW):
            def step(self, closure=None):
                super().step()
                with torch.no_grad():
                    for p in self.param_groups[0]["params"]:
                        p.add_(torch.randn_like(p), alpha=2e-4)

        (message,) = Loop(lambda p: Noisy(p, lr=1e-3), MATRICES).run(60).findings
        assert "AdamW" in message
        assert "Noisy" in message

    def test_gradients_that_change_before_the_step(self):
        def clip(weights):
            nn.utils.clip_grad_norm_(weights, 0.1)

        (message,) = Loop(lambda p: optim.AdamW(p, lr=1e-3), every=1).run(1, late=clip).findings
        assert "1 of 1" in message
        (message,) = Loop(lambda p: optim.SGD(p, lr=1e-3), every=1).run(3, scale=8.0).findings
        assert "factor 8" in message
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        (message,) = Loop(lambda p: optim.SGD(p, lr=1e-3), every=1, scaler=scaler).run(3, scale=1.0).findings
        assert "factor 0.125" in message

    def test_a_lion_with_another_update(self):
        loop = Loop(lambda p: Lion(p, lr=1e-3, weight_decay=1e-2, sign=False))
        assert loop.check.follows_rule(0) is None
        assert any("Lion" in text for text in loop.run().findings)
        assert loop.check.follows_rule(0) is False

    def test_a_fault_that_starts_late_is_found_in_the_last_checks(self):
        loop = Loop(lambda p: with_decay_times(optim.AdamW, 1.0)(p, lr=1e-3, weight_decay=1e-2))
        assert_fine(loop.run(1000), 100)
        loop.optimizer.__class__ = with_decay_times(optim.AdamW, 0.9)
        loop.run(200)
        assert loop.check.report(last=20).groups[0].decay_share == pytest.approx(0.9, abs=0.01)


class TestUncheckedGroups:
    def test_unknown_optimizers_and_states_have_a_reason(self):
        for kind in (optim.RMSprop, optim.Adagrad, optim.NAdam, optim.Rprop):
            (group,) = Loop(lambda p, kind=kind: kind(p, lr=1e-3)).run(20).groups
            assert group.checks == 0
            assert kind.__name__ in group.reason

        class OtherState(optim.AdamW):
            def step(self, closure=None):
                super().step()
                for state in self.state.values():
                    state["exp_avg"] = [state["exp_avg"]]

        loop = Loop(lambda p: OtherState(p, lr=1e-3), every=1)
        (group,) = loop.run(1).groups
        assert (group.checks, "exp_avg" in group.reason) == (0, True)
        assert "not checked" in str(group)

    def test_weights_that_are_not_finite(self):
        loop = Loop(lambda p: optim.SGD(p, lr=1e-3))
        loop.weights["w0"].data[0] = torch.nan
        (group,) = loop.run(20).groups
        assert (group.checks, "finite" in group.reason) == (0, True)

    def test_sparse_or_zeroed_gradients(self):
        def sparse(weights):
            p = next(iter(weights))
            p.grad = p.grad.to_sparse()

        (group,) = Loop(lambda p: optim.SGD(p, lr=1e-3), MATRICES).run(20, act=sparse).groups
        assert (group.checks, bool(group.reason)) == (0, True)
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(8))
        optimizer, check = optim.SGD([weight], lr=0.1), StepCheck()
        weight.grad = torch.randn(8)
        before = weight.detach().clone()
        check.before(optimizer, {"weight": weight})
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        check.after({"weight": before})
        (group,) = check.report().groups
        assert (group.checks, "zeroed" in group.reason) == (0, True)
        assert check.follows_rule(0) is None

    def test_steps_without_record(self):
        check = StepCheck()
        check.after({})
        assert check.report().groups == ()


def group_of(kind, **settings):
    optimizer = kind([nn.Parameter(torch.randn(4, 3))], lr=1e-3, **settings)
    return optimizer, optimizer.param_groups[0]


class TestRules:
    @pytest.mark.parametrize(
        ("kind", "settings", "rule"),
        [
            (optim.SGD, {}, theory.SGD()),
            (optim.SGD, {"dampening": 0.5}, theory.SGD()),
            (optim.SGD, {"momentum": 0.9, "maximize": True}, theory.SGD(momentum=0.9)),
            (optim.SGD, {"momentum": 0.9, "nesterov": True}, theory.SGD(momentum=0.9, nesterov=True)),
            (optim.Adam, {"betas": (0.8, 0.9)}, theory.Adam(dim=12, betas=(0.8, 0.9))),
            (optim.Adam, {"decoupled_weight_decay": True}, theory.AdamW(dim=12)),
            (optim.AdamW, {"eps": 1e-6, "foreach": True}, theory.AdamW(dim=12, eps=1e-6)),
            (Lion, {}, theory.Lion(dim=12)),
        ],
    )
    def test_known(self, kind, settings, rule):
        assert rule_of(*group_of(kind, **settings), 12) == (rule, repr(rule))

    @pytest.mark.parametrize(
        ("kind", "settings", "name"),
        [
            (optim.SGD, {"momentum": 0.9, "dampening": 0.1}, "SGD(momentum=0.9, dampening=0.1)"),
            (optim.AdamW, {"amsgrad": True}, "AdamW(amsgrad=True)"),
            (optim.Adam, {"amsgrad": True, "decoupled_weight_decay": True}, "AdamW(amsgrad=True)"),
            (optim.Muon, {}, "Muon(momentum=0.95)"),
            (Muon, {}, "Muon(momentum=0.95)"),
            (optim.RMSprop, {}, "RMSprop"),
        ],
    )
    def test_unknown(self, kind, settings, name):
        assert rule_of(*group_of(kind, **settings), 12) == (None, name)

    @pytest.mark.parametrize(
        ("settings", "rule"),
        [
            ({}, theory.Muon(rows=3, columns=4)),
            ({"momentum": 0.9, "nesterov": False, "ns_steps": 7}, theory.Muon(3, 4, 0.9, False, iterations=7)),
            ({"adjust_lr_fn": "match_rms_adamw"}, theory.Muon(3, 4, scale="match_rms_adamw")),
            ({"ns_coefficients": (3.0, -3.0, 1.0)}, None),
        ],
    )
    def test_muon_of_a_single_matrix(self, settings, rule):
        assert rule_of(*group_of(optim.Muon, **settings), 12, (3, 4))[0] == rule

    def test_subclasses(self):
        class SameStep(optim.AdamW):
            pass

        class AdamW8bit(optim.AdamW):
            def step(self, closure=None):
                super().step()

        class FusedAdam(optim.Optimizer):
            def __init__(self, params, lr, adam_w_mode=True):
                self.adam_w_mode = adam_w_mode
                super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "bias_correction": True})

        assert rule_of(*group_of(SameStep), 12)[0] == theory.AdamW(dim=12)
        assert rule_of(*group_of(AdamW8bit), 12) == (None, "AdamW8bit")
        assert rule_of(*group_of(FusedAdam), 12)[0] == theory.AdamW(dim=12)
        assert rule_of(*group_of(FusedAdam, adam_w_mode=False), 12)[0] == theory.Adam(dim=12)

    def test_settings_that_change(self):
        optimizer, group = group_of(optim.SGD, momentum=0.9)
        group["momentum"] = 0.5
        assert rule_of(optimizer, group, 12)[0] == theory.SGD(momentum=0.5)
        group["momentum"] = 1.5
        assert rule_of(optimizer, group, 12)[0] is None

    def test_wrappers(self):
        class Wrapper:
            def __init__(self, optimizer):
                self.optimizer = optimizer

        optimizer, group = group_of(optim.SGD)
        assert inner_optimizer(optimizer) is optimizer
        assert inner_optimizer(Wrapper(optimizer)) is optimizer
        assert rule_of(Wrapper(optimizer), group, 12)[0] == theory.SGD()
        loop = Loop(lambda p: optim.AdamW(p, lr=1e-3))
        loop.optimizer = Wrapper(loop.optimizer)
        loop.optimizer.step = loop.optimizer.optimizer.step
        assert_fine(loop.run())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "form", [{"capturable": True}, {"capturable": True, "foreach": True}, {"fused": True}], ids=str
)
@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_ordinary_steps_on_a_gpu(kind, form):
    torch.manual_seed(0)
    weight, check = nn.Parameter(torch.randn(64, 64, device="cuda")), StepCheck()
    optimizer = kind([weight], lr=torch.tensor(1e-3, device="cuda"), weight_decay=1e-2, **form)
    for _ in range(20):
        weight.grad = torch.randn(64, 64, device="cuda")
        before = {"weight": weight.detach().clone()}
        check.before(optimizer, {"weight": weight})
        optimizer.step()
        check.after(before)
    assert_fine(check.report())


def test_the_rule_is_found_after_torch_has_compiled_something():
    optimizer = optim.AdamW([nn.Parameter(torch.ones(3))])
    assert rule_of(optimizer, optimizer.param_groups[0], 3)[0] == theory.AdamW(dim=3)
    # this wraps methods of all optimizers
    torch.compile(nn.Linear(3, 3), backend="eager")(torch.ones(2, 3))
    assert rule_of(optimizer, optimizer.param_groups[0], 3)[0] == theory.AdamW(dim=3)
