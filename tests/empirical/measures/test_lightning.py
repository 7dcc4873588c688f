"""Monitor in Lightning's Trainer: each step as in a plain loop, and training unchanged."""

import contextlib
import doctest
import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import empirical
import simulate
import theory
from empirical.measures import lightning_callback
from empirical.measures._group_settings import PacedScheduler

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
plugins = pytest.importorskip("lightning.pytorch.plugins")

pytestmark = [
    # Lightning about PyTorch 2.13, and about data that are in memory already
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
WATCHED = ["0.weight", "3.weight"]
BATCHES, SIZE = 8, 16


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def fused(parameters):
    return torch.optim.SGD(parameters, lr=0.1, weight_decay=0.01, fused=True)


def network(*more):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), *more, nn.Linear(8, 3)
    )


def loader(batches=BATCHES):
    generator = torch.Generator().manual_seed(1)
    count = batches * SIZE
    data = TensorDataset(torch.randn(count, 5, generator=generator), torch.randint(3, (count,), generator=generator))
    return DataLoader(data, batch_size=SIZE)


def nothing(model, number):
    pass


class Module(pl.LightningModule):
    """A network with a training step; `before` and `between` are called in each batch, before and after backward."""

    def __init__(self, net, make=sgd, *, before=nothing, between=nothing):
        super().__init__()
        self.net, self._make, self._before, self._between, self.number = net, make, before, between, 0

    def training_step(self, batch, batch_idx):
        self.number = batch_idx
        self._before(self.net, batch_idx)
        return cross_entropy(self.net(batch[0]), batch[1])

    def on_after_backward(self):
        self._between(self.net, self.number)

    def configure_optimizers(self):
        return self._make(self.net.parameters())


def callback(**options):
    return empirical.MonitorCallback(next(iter(loader()))[0], submodule="net", **options)


def fit(module, *callbacks, epochs=1, batches=BATCHES, ckpt_path=None, **options):
    trainer = pl.Trainer(**{**QUIET, "callbacks": list(callbacks), "max_epochs": epochs, **options})
    trainer.fit(module, loader(batches), ckpt_path=ckpt_path)
    return trainer


def flat(model, names, of):
    parameters = dict(model.named_parameters())
    return torch.cat([of(parameters[name]).detach().reshape(-1).double() for name in names])


def weights(model, names=WATCHED):
    return flat(model, names, lambda p: p)


def slopes(model, names=WATCHED):
    return flat(model, names, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)


def by_hand(model, make, names, *, accumulate=1, clip=None, scaler=None, before=nothing, between=nothing):
    """Norm, g̃, loss and angle of each step of a plain loop, without those that a scaler skips."""
    optimizer, data, rows = make(model.parameters()), list(loader()), []
    for first in range(0, len(data), accumulate):
        optimizer.zero_grad()
        losses = []
        for number in range(first, min(first + accumulate, len(data))):
            before(model, number)
            with torch.autocast("cpu", torch.half, enabled=scaler is not None, cache_enabled=False):
                loss = cross_entropy(model(data[number][0]), data[number][1])
            (loss if scaler is None else scaler.scale(loss)).div(accumulate).backward()
            between(model, number)
            losses.append(loss.item())
        if scaler is not None:
            scaler.unscale_(optimizer)
        if clip is not None:
            clip(model.parameters())
        old, slope = weights(model, names), slopes(model, names)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        new = weights(model, names)
        if scaler is not None and not all(p.grad.isfinite().all() for p in model.parameters()):
            assert torch.equal(old, new)
            continue
        angle = 2 * math.asin(float((old / old.norm() - new / new.norm()).norm()) / 2)
        rows.append((float(old.norm()), float(old.norm() * slope.norm()), np.mean(losses), angle))
    return np.array(rows)


def measured(run):
    return np.stack([run[name].values for name in ("norm", "grad_norm", "loss", "rotation")], axis=1)


def by_norm(parameters):
    nn.utils.clip_grad_norm_(parameters, 0.1)


def by_value(parameters):
    nn.utils.clip_grad_value_(parameters, 0.01)


CLIP_BY_NORM = {"gradient_clip_val": 0.1}
CLIP_BY_VALUE = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}


@pytest.mark.parametrize(
    ("make", "accumulate", "clip", "options"),
    [
        (sgd, 1, None, {}),
        # 8 micro-batches: the last step has two of them only
        (sgd, 3, None, {}),
        (fused, 1, by_norm, CLIP_BY_NORM),
        (adamw, 3, by_norm, CLIP_BY_NORM),
        (fused, 4, by_value, CLIP_BY_VALUE),
    ],
    ids=["plain", "accumulated", "clipped", "adamw", "accumulated and clipped"],
)
def test_each_step_is_that_of_a_plain_loop(make, accumulate, clip, options):
    watch, module, twin = callback(), Module(network(), make), network()
    fit(module, watch, accumulate_grad_batches=accumulate, **options)
    expected = by_hand(twin, make, WATCHED, accumulate=accumulate, clip=clip)
    run = watch.trajectory()
    assert run.sizes["step"] == -(-BATCHES // accumulate)
    np.testing.assert_allclose(measured(run), expected, rtol=1e-6)
    assert run.final_norm.item() == pytest.approx(float(weights(twin).norm()), rel=1e-6)
    assert run.attrs["skipped_steps"] == 0
    # the forecast is that of the monitor
    assert str(watch.forecast(rotation=0.05)) == str(watch.monitor.forecast(rotation=0.05))


def test_a_schedule_is_recorded():
    def configured(self):
        optimizer = sgd(self.net.parameters())
        steps = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": steps, "interval": "step"}}

    watch, module = callback(), Module(network())
    module.configure_optimizers = configured.__get__(module)
    fit(module, watch)
    np.testing.assert_allclose(watch.trajectory().lr, 0.1 * 0.5 ** np.arange(BATCHES), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "clip", "accumulate"),
    [(sgd, by_norm, 1), (sgd, None, 2), (fused, None, 1), (fused, None, 2)],
    ids=["clipped", "accumulated", "fused", "fused and accumulated"],
)
def test_steps_that_a_scaler_skips_are_counted_and_left_out(make, clip, accumulate):
    def overflow(model, number):
        # once in a weight that is not watched
        if number in (2, 5):
            model[-1 if number == 2 else 0].weight.grad[0, 0] = torch.inf

    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    watch, module, twin = callback(), Module(network(), make, between=overflow), network()
    precision = plugins.MixedPrecision("16-mixed", "cpu", scaler())
    options = {} if clip is None else {"gradient_clip_val": 0.1}
    fit(module, watch, plugins=[precision], accumulate_grad_batches=accumulate, **options)
    plain = {sgd: sgd, fused: lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01)}[make]
    expected = by_hand(twin, plain, WATCHED, scaler=scaler(), between=overflow, clip=clip, accumulate=accumulate)
    run = watch.trajectory()
    assert len(expected) == run.sizes["step"] == BATCHES // accumulate - 2
    assert run.attrs["skipped_steps"] == watch.monitor.skipped == 2
    np.testing.assert_allclose(measured(run), expected, rtol=1e-6)
    # each norm follows from the one before
    if make is fused and clip is None:
        np.testing.assert_allclose(simulate.replay(run).norm, run.norm, rtol=1e-5)


def test_shared_and_frozen_parameters():
    def shared():
        torch.manual_seed(0)
        twice = nn.Linear(8, 8)
        layers = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), twice, nn.BatchNorm1d(8), twice, nn.BatchNorm1d(8)]
        return nn.Sequential(*layers, nn.Linear(8, 3))

    def freeze(model, number):
        if number in (2, 5):
            model[0].weight.requires_grad_(number == 5)

    watch, module, twin = callback(), Module(shared(), before=freeze), shared()
    fit(module, watch)
    expected = by_hand(twin, sgd, WATCHED, before=freeze)
    run = watch.trajectory()
    assert run.group.values.tolist() == WATCHED
    np.testing.assert_allclose(measured(run), expected, rtol=1e-6)
    assert run.group_rotation.values[2:5, 0].tolist() == run.group_grad_norm.values[2:5, 0].tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_steps_without_a_gradient_are_counted_and_left_out():
    class Sparing(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            # Lightning then calls the optimizer without a gradient
            return None if batch_idx == 3 else loss

    def freeze(model, number):
        for layer in (model[0], model[3]):
            layer.weight.requires_grad_(number != 5)

    watch, module, twin = callback(), Sparing(network(), before=freeze), network()
    fit(module, watch)
    assert watch.monitor.skipped == 2
    run = watch.trajectory()
    assert run.sizes["step"] == BATCHES - 2
    # up to there as if nothing were left out
    np.testing.assert_allclose(measured(run)[:3], by_hand(twin, sgd, WATCHED)[:3], rtol=1e-6)
    assert run.final_norm.item() == pytest.approx(float(weights(module.net).norm()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_micro_batch_without_a_loss_is_not_in_the_mean():
    class Sparing(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(float(loss.detach()))
            return None if batch_idx == 2 else loss

    losses, watch = [], callback()
    fit(Sparing(network()), watch, accumulate_grad_batches=4)
    assert watch.trajectory().loss.values[0] == pytest.approx(np.mean([losses[i] for i in (0, 1, 3)]), rel=1e-6)


@pytest.mark.parametrize(("make", "scaled"), [(adamw, False), (sgd, True)])
def test_training_is_the_same_to_the_last_bit(make, scaled):
    def trained(*callbacks):
        # dropout takes from the random state that finding the weights must leave alone
        module = Module(network(nn.Dropout(0.3)), make)
        torch.manual_seed(7)
        more = {"plugins": [plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]} if scaled else {}
        fit(module, *callbacks, epochs=2, accumulate_grad_batches=3, gradient_clip_val=0.5, **more)
        return module.state_dict(), torch.get_rng_state()

    alone, watched = trained(), trained(callback())
    assert all(torch.equal(alone[0][name], watched[0][name]) for name in alone[0])
    assert torch.equal(alone[1], watched[1])


class ByHand(Module):
    """Manual optimization: two micro-batches a step, as two losses."""

    def __init__(self, net, *, optimizers=1, past_lightning=()):
        super().__init__(net)
        self.automatic_optimization, self.count, self.past_lightning = False, optimizers, past_lightning
        self.losses, self.norms = [], []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=batch_idx not in self.past_lightning)
        optimizer.zero_grad()
        total = 0.0
        for part in (slice(8), slice(8, None)):
            loss = cross_entropy(self.net(batch[0][part]), batch[1][part]) / 2
            self.manual_backward(loss)
            total += float(loss.detach())
        self.losses.append(total)
        self.norms.append(float(weights(self.net).norm()))
        optimizer.step()

    def configure_optimizers(self):
        return [self._make(self.net.parameters()) for _ in range(self.count)]


def test_manual_optimization():
    watch, module = callback(), ByHand(network(), past_lightning=[3])
    fit(module, watch)
    run = watch.trajectory()
    np.testing.assert_allclose(run.norm, module.norms, rtol=1e-6)
    # the loss of a step that bypasses Lightning is not known
    module.losses[3] = np.nan
    np.testing.assert_allclose(run.loss, module.losses, rtol=1e-6)


def test_a_step_that_raised_is_dropped():
    class Surviving(ByHand):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                with contextlib.suppress(ZeroDivisionError):
                    self.optimizers().step(closure=lambda: 1 / 0)
            else:
                super().training_step(batch, batch_idx)

    watch, module = callback(), Surviving(network())
    fit(module, watch)
    np.testing.assert_allclose(watch.trajectory().norm, module.norms, rtol=1e-6)
    assert len(module.norms) == BATCHES - 1


def test_micro_batches_without_a_step_are_dropped():
    class Stopping(Module):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.current_epoch == 0 and batch_idx == 3 else None

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(float(loss.detach()))
            return loss

    losses, watch = [], callback()
    fit(Stopping(network()), watch, epochs=2, accumulate_grad_batches=2)
    # the third of the first epoch was dropped
    kept = np.delete(losses, 2).reshape(-1, 2)
    np.testing.assert_allclose(watch.trajectory().loss, kept.mean(axis=1), rtol=1e-6)


def test_several_optimizers_are_refused():
    watch = callback()
    fit(ByHand(network()), watch)
    with pytest.raises(ValueError, match=r"trainer.*2"):
        fit(ByHand(network(), optimizers=2), watch)
    # the trajectory of the earlier training is gone
    with pytest.raises(ValueError, match="trainer must have begun"):
        watch.trajectory()


class Adversaries(pl.LightningModule):
    """Two networks with an optimizer each; the second one steps in every second batch, before the first one."""

    def __init__(self, *, sharing=False):
        super().__init__()
        self.first, self.second, self.sharing = network(), network(), sharing
        self.automatic_optimization, self.looks = False, {"first": [], "second": []}

    def forward(self, x):
        return self.first(x) + self.second(x)

    def training_step(self, batch, batch_idx):
        optimizers = dict(zip(("first", "second"), self.optimizers(), strict=True))
        for name in ("second", "first") if batch_idx % 2 else ("first",):
            net, sign = getattr(self, name), 1 if name == "first" else -0.1
            optimizers[name].zero_grad()
            loss = sign * cross_entropy(self(batch[0]), batch[1])
            # differentiates both networks
            self.manual_backward(loss)
            size = weights(net).norm()
            self.looks[name].append((float(size), float(size * slopes(net).norm()), float(loss.detach())))
            optimizers[name].step()

    def configure_optimizers(self):
        second = [*self.second.parameters(), *([self.first[0].weight] if self.sharing else [])]
        return sgd(self.first.parameters()), sgd(second)


def test_each_of_several_optimizers_has_its_own_steps():
    watch, module = empirical.MonitorCallback(torch.randn(16, 5)), Adversaries()
    fit(module, watch)
    assert [list(monitor.groups) for monitor in watch.monitors] == [
        [f"{name}.{weight}" for weight in WATCHED] for name in ("first", "second")
    ]
    assert watch.monitor is watch.monitors[0]
    for monitor, looks in zip(watch.monitors, module.looks.values(), strict=True):
        run = monitor.trajectory()
        np.testing.assert_allclose(np.stack([run.norm, run.grad_norm, run.loss], axis=1), looks, rtol=1e-6)
    run = watch.trajectory("second.3.weight")
    assert run.sizes["step"] == BATCHES // 2
    assert run.final_norm.item() == pytest.approx(float(module.second[3].weight.detach().norm()), rel=1e-6)
    assert len(watch.check_steps()) == 2
    for ask in (watch.trajectory, watch.forecast):
        with pytest.raises(ValueError, match=r"group must be given, because 2 optimizers.*second\.3\.weight"):
            ask()
    with pytest.raises(ValueError, match=r"group.*third"):
        watch.trajectory("third")


def test_groups_of_several_optimizers_are_left_out():
    watch = empirical.MonitorCallback(torch.randn(16, 5))
    with pytest.warns(UserWarning, match=r"groups \['first\.0\.weight'\] are left out"):
        fit(Adversaries(sharing=True), watch)
    assert [list(monitor.groups) for monitor in watch.monitors] == [
        ["first.3.weight"],
        ["second.0.weight", "second.3.weight"],
    ]


def test_other_options_are_those_of_the_monitor():
    whole, some = callback(), callback(every=3, norms_only=True)
    for watch in (whole, some):
        fit(Module(network()), watch)
    run = some.trajectory("3.weight")
    assert run.step.values.tolist() == [0, 3, 6]
    assert "rotation" not in run
    np.testing.assert_allclose(run.norm, whole.trajectory("3.weight").norm[::3], rtol=1e-12)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_the_forecast_goes_to_the_end_of_training(interval, monkeypatch):
    def forecast(self, group=None, **options):
        if isinstance(options["schedule"], PacedScheduler):
            options["schedule"] = self._future_lrs(options["schedule"], next(iter(self.groups)), options["steps_left"])
        asked.append(options)

    class Asking(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            # after 6 of 12 steps
            if trainer.global_step == 6 and not asked:
                watch.forecast()
                watch.forecast(steps_left=2, schedule=[1.0, 0.5, 0.1])

    def configured(self):
        optimizer = sgd(self.net.parameters())
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    asked, watch, module = [], callback(), Module(network())
    module.configure_optimizers = configured.__get__(module)
    monkeypatch.setattr(empirical.Monitor, "forecast", forecast)
    fit(module, watch, Asking(), epochs=3, accumulate_grad_batches=2)
    lrs = watch.trajectory().lr.values
    assert len(lrs) == 12
    assert asked[0]["steps_left"] == 6
    np.testing.assert_allclose(asked[0]["schedule"], lrs[5:], rtol=1e-12)
    assert (asked[1]["steps_left"], asked[1]["schedule"]) == (2, [1.0, 0.5, 0.1])
    watch.forecast()
    assert (asked[2]["steps_left"], asked[2]["schedule"]) == (None, None)


def test_an_optimizer_with_several_evaluations_is_measured_at_the_first():
    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)

    class Noting(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if len(looks) == batch_idx:
                looks.append((float(weights(self.net).norm()), float(loss.detach())))
            evaluations.append(batch_idx)
            return loss

    looks, evaluations = [], []
    watch = callback()
    fit(Noting(network(), lbfgs), watch)
    assert len(evaluations) > 2 * BATCHES
    run = watch.trajectory()
    np.testing.assert_allclose(np.stack([run.norm, run.loss], axis=1), looks, rtol=1e-6)


class Halving(torch.optim.SGD):
    """Its own step calls that of its base, after or before what it does itself."""

    first = False

    def step(self, closure=None):
        if self.first:
            self._halve()
            return super().step(closure)
        loss = super().step(closure)
        self._halve()
        return loss

    @torch.no_grad()
    def _halve(self):
        for parameter in self.param_groups[0]["params"]:
            parameter *= 0.5


class HalvingFirst(Halving):
    first = True


@pytest.mark.parametrize(("kind", "scaled"), [(Halving, False), (Halving, True), (HalvingFirst, True)])
def test_an_optimizer_derived_from_another_is_measured_from_end_to_end(kind, scaled):
    def make(parameters):
        return kind(parameters, lr=0.1)

    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None

    watch, twin = callback(), network()
    more = {"plugins": [plugins.MixedPrecision("16-mixed", "cpu", scaler())]} if scaled else {}
    fit(Module(network(), make), watch, **more)
    run = watch.trajectory()
    np.testing.assert_allclose(measured(run), by_hand(twin, make, WATCHED, scaler=scaler()), rtol=1e-6)
    assert run.final_norm.item() == pytest.approx(float(weights(twin).norm()), rel=1e-6)


def test_training_goes_on_from_a_checkpoint(tmp_path):
    whole, first, second = callback(), callback(), callback()
    fit(Module(network()), whole, epochs=2)
    stopped = fit(Module(network()), first)
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    for watch in (second, first):
        fit(Module(network()), watch, epochs=2, ckpt_path=tmp_path / "last.ckpt")
        run = watch.trajectory()
        assert run.step.values.tolist() == list(range(BATCHES, 2 * BATCHES))
        np.testing.assert_allclose(measured(run), measured(whole.trajectory())[BATCHES:], rtol=1e-9)


def test_training_that_fails_leaves_no_hooks():
    def fail(model, number):
        if number == 3 and not survived:
            raise RuntimeError("failed")

    survived, watch, module = [], callback(), Module(network(), before=fail)
    trainer = pl.Trainer(**QUIET, callbacks=[watch], max_epochs=1)
    with pytest.raises(RuntimeError, match="failed"):
        trainer.fit(module, loader())
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert watch.trajectory().sizes["step"] == 3
    survived.append(True)
    trainer = fit(module, watch)
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert watch.trajectory().sizes["step"] == BATCHES


def test_what_goes_to_tensorboard_is_what_was_measured(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = pl.loggers.TensorBoardLogger(tmp_path, name=None, version="run")
    watch = callback(write=True, write_every=1)
    fit(Module(network()), watch, logger=logger, log_every_n_steps=1)
    read = accumulator.EventAccumulator(str(tmp_path / "run"))
    read.Reload()
    run = watch.trajectory()
    run["lr"] = ("step", np.full(BATCHES, 0.1))
    for name in ("loss", "lr", "norm", "grad_norm", "rotation", "effective_lr", "radial_defect"):
        events = read.Scalars(f"bnwd/{name}")
        assert [event.step for event in events] == list(range(BATCHES))
        # TensorBoard keeps single precision
        np.testing.assert_allclose([event.value for event in events], run[name], rtol=1e-6, err_msg=name)
    log = simulate.read_log(tmp_path / "run", wd=0.01)
    for name in ("loss", "lr", "norm", "grad_norm", "rotation"):
        np.testing.assert_allclose(log[name], run[name], rtol=1e-6, err_msg=name)


def test_a_plain_loop_writes_the_same_files(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    model = network()
    optimizer = sgd(model.parameters())
    with SummaryWriter(tmp_path) as writer:
        options = {"writer": writer, "write_every": 3, "first_step": 100}
        monitor = empirical.Monitor(model, optimizer, torch.randn(16, 5), **options)
        for inputs, targets in loader():
            loss = cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            monitor.before_step(loss)
            optimizer.step()
            monitor.after_step()
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    run = monitor.trajectory()
    assert run.step.values.tolist() == list(range(100, 100 + BATCHES))
    for name in ("loss", "norm", "grad_norm", "rotation", "effective_lr"):
        events = read.Scalars(f"bnwd/{name}")
        assert [event.step for event in events] == [100, 103, 106]
        np.testing.assert_allclose([event.value for event in events], run[name][::3], rtol=1e-6, err_msg=name)
    assert [event.value for event in read.Scalars("bnwd/lr")] == pytest.approx([0.1] * 3)


def test_a_custom_writer():
    class Writer(list):
        def add_scalar(self, tag, scalar_value, global_step):
            self.append((tag, global_step))

    writer = Writer()
    fit(Module(network()), callback(writer=writer, write_every=4))
    assert {step for _, step in writer} == {0, 4}
    assert ("bnwd/loss", 4) in writer


def test_the_whole_module_and_chosen_weights():
    class Whole(Module):
        def forward(self, x):
            return self.net(x)

    watch, module = empirical.MonitorCallback(torch.randn(16, 5), weights=["net.3.weight"]), Whole(network())
    fit(module, watch)
    run = watch.trajectory()
    assert run.group.values.tolist() == ["net.3.weight"]
    assert run.final_norm.item() == pytest.approx(float(module.net[3].weight.detach().norm()), rel=1e-6)
    assert run.attrs["optimizer"] == repr(theory.SGD(momentum=0.9))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, r"submodule.*None.*Module"),
        ({"submodule": "nets"}, r"submodule.*\['net'\].*'nets'"),
        ({"submodule": "net", "write": True}, r"write.*TensorBoardLogger.*\[\]"),
        ({"submodule": "net", "weights": ["5.weight"]}, r"weights.*5\.weight"),
    ],
)
def test_options_that_do_not_fit_are_refused_when_training_begins(options, match):
    with pytest.raises(ValueError, match=match):
        fit(Module(network()), empirical.MonitorCallback(torch.randn(16, 5), **options))


def test_misuse_is_named():
    with pytest.raises(TypeError, match="inputs must be"):
        empirical.MonitorCallback([1.0])
    with pytest.raises(ValueError, match="write_every"):
        empirical.MonitorCallback(torch.randn(16, 5), write_every=0)
    for ask in (callback().trajectory, callback().forecast):
        with pytest.raises(ValueError, match="trainer must have begun to train"):
            ask()


def run_alone(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_without_lightning_all_else_works():
    code = """
import sys
import torch, empirical
assert empirical.Monitor and not {"lightning", "pytorch_lightning"} & set(sys.modules)
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
try:
    empirical.MonitorCallback(torch.randn(16, 5))
except ImportError as error:
    print(str(error).split(": ")[1])
"""
    assert " ".join(run_alone(code)) == "pip install 'bnwd[lightning]', or pip install lightning"


def test_the_other_package_of_lightning_does_too():
    code = """
import sys
sys.modules["lightning"] = None
import torch, empirical, pytorch_lightning as pl
from torch import nn
class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    def training_step(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), torch.arange(16) % 3)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.01)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(48, 5)), 16)
callback = empirical.MonitorCallback(torch.randn(16, 5), submodule="net")
assert isinstance(callback, pl.Callback)
options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
pl.Trainer(callbacks=callback, max_epochs=1, accelerator="cpu", **options).fit(Module(), data)
print(callback.trajectory().sizes["step"])
"""
    assert run_alone(code) == ["3"]


def test_the_example_runs():
    text = inspect.getdoc(empirical.MonitorCallback).replace("  # doctest: +SKIP", "")
    names = {**vars(lightning_callback), "nn": nn}
    example = doctest.DocTestParser().get_doctest(text, names, "MonitorCallback", None, None)
    assert len(example.examples) > 5
    assert doctest.DocTestRunner().run(example).failed == 0
