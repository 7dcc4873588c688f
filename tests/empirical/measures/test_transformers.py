"""Monitor in the Trainer of Hugging Face: each step as in a plain loop, and training unchanged."""

import doctest
import inspect
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler

import empirical
import theory
from empirical.measures import transformers_callback
from empirical.measures._group_settings import PacedScheduler

transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")


SAMPLES, BATCH, ACCUMULATE, LR, WD = 28, 4, 2, 1e-2, 0.5
# 28 samples are 7 micro-batches, so that the last step of an epoch has one only
STEPS_PER_EPOCH, EPOCHS, WARM_UP = 4, 2, 3
STEPS = EPOCHS * STEPS_PER_EPOCH


def llama(**more):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **more))


def vit():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=10)
    return transformers.ViTForImageClassification(config)


class BatchNormNet(nn.Module):
    """A model that takes no `num_items_in_batch`; `form` is that of its output."""

    def __init__(self, form=dict):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.form = form

    def forward(self, values, labels=None):
        logits = self.net(values)
        loss = None if labels is None else cross_entropy(logits, labels)
        return (loss, logits) if self.form is tuple else {"loss": loss, "logits": logits}


def texts(count=SAMPLES):
    """Random tokens; each sample has another number of labels."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(40, (count, 9), generator=generator)
    samples = []
    for number, row in enumerate(tokens):
        labels = row.clone()
        labels[: number % 6] = -100
        samples.append({"input_ids": row, "labels": labels})
    return samples


def images(count=SAMPLES):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, 8, 8, generator=generator)
    return [{"pixel_values": image, "labels": number % 10} for number, image in enumerate(pixels)]


def vectors(count=SAMPLES):
    generator = torch.Generator().manual_seed(1)
    return [{"values": row, "labels": n % 3} for n, row in enumerate(torch.randn(count, 5, generator=generator))]


class Ordered(transformers.Trainer):
    """Trainer that takes samples in their order."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def trainer_of(model, data, folder, *callbacks, kind=Ordered, collator=None, more=None, **options):
    fixed = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    chosen = {
        "save_strategy": "no",
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATE,
        "num_train_epochs": EPOCHS,
        "learning_rate": LR,
        "weight_decay": WD,
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARM_UP,
        "max_grad_norm": 1.0,
        "logging_strategy": "no",
        **options,
    }
    args = transformers.TrainingArguments(**fixed, **chosen)
    return kind(model, args, train_dataset=data, callbacks=list(callbacks), data_collator=collator, **(more or {}))


def fit(model, data, folder, *callbacks, resume=None, **options):
    trainer = trainer_of(model, data, folder, *callbacks, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def flat(model, names, of):
    parameters = dict(model.named_parameters())
    return torch.cat([of(parameters[name]).detach().reshape(-1).double() for name in names])


def weights(model, names):
    return flat(model, names, lambda p: p)


def slopes(model, names):
    return flat(model, names, lambda p: p.grad)


def text_losses(model, samples):
    """Sum of the losses of all tokens that have a label, and their number."""
    tokens, labels = (torch.stack([sample[key] for sample in samples]) for key in ("input_ids", "labels"))
    logits = model(input_ids=tokens).logits[:, :-1].reshape(-1, 40)
    return cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum"), int((labels[:, 1:] != -100).sum())


def image_losses(model, samples):
    labels = torch.tensor([sample["labels"] for sample in samples])
    logits = model(pixel_values=torch.stack([sample["pixel_values"] for sample in samples])).logits
    return cross_entropy(logits, labels, reduction="sum"), len(labels)


def vector_losses(model, samples):
    labels = torch.tensor([sample["labels"] for sample in samples])
    return cross_entropy(model.net(torch.stack([s["values"] for s in samples])), labels), 1


def lr_of_step(step):
    if step < WARM_UP:
        return LR * step / WARM_UP
    return LR * (0.5 + 0.5 * math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


def by_hand(model, data, losses_of, names, *, skipped=(), schedule_waits=True):
    """Norm, g̃, loss, angle and lr of each step of a plain loop, and the largest norm of all gradients."""
    # the norms of Llama and ViT, and biases, do not decay
    decays = {name: not ("bias" in name or "norm" in name) for name, _ in model.named_parameters()}
    parts = [[p for name, p in model.named_parameters() if decays[name] is flag] for flag in (True, False)]
    groups = [{"params": parts[0], "weight_decay": WD}, {"params": parts[1], "weight_decay": 0.0}]
    optimizer, rows, largest, taken = torch.optim.AdamW(groups, lr=LR, foreach=False), [], 0.0, 0
    for step in range(STEPS):
        first = step % STEPS_PER_EPOCH * ACCUMULATE * BATCH
        of_step = data[first : first + ACCUMULATE * BATCH]
        batches = [of_step[i : i + BATCH] for i in range(0, len(of_step), BATCH)]
        optimizer.zero_grad()
        sums, counts = zip(*[losses_of(model, batch) for batch in batches], strict=True)
        loss = sum(sums) / sum(counts)
        loss.backward()
        largest = max(largest, float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = lr_of_step(taken)
        taken += step not in skipped or not schedule_waits
        if step in skipped:
            continue
        old, slope = weights(model, names), slopes(model, names)
        optimizer.step()
        new = weights(model, names)
        angle = 2 * math.asin(float((old / old.norm() - new / new.norm()).norm()) / 2)
        rows.append((old.norm(), old.norm() * slope.norm(), loss.item(), angle, group["lr"]))
    return np.array(rows), largest


def measured(run):
    return np.stack([run[name].values for name in ("norm", "grad_norm", "loss", "rotation", "lr")], axis=1)


CASES = {
    "text": (llama, texts, text_losses, {}),
    "images": (vit, images, image_losses, {}),
    "mean over micro-batches": (BatchNormNet, vectors, vector_losses, {}),
    "tuple": (lambda: BatchNormNet(tuple), vectors, vector_losses, {}),
    "not fused": (llama, texts, text_losses, {"optim": "adamw_torch"}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_step_is_that_of_a_plain_loop(case, tmp_path):
    build, sample, losses_of, options = CASES[case]
    watch, model, twin, data = empirical.TrainerMonitorCallback(), build(), build(), sample()
    trainer = fit(model, data, tmp_path, watch, **options)
    names = [name for group in watch.monitor.groups.values() for name in group.weights]
    assert len(names) == {"text": 5, "images": 12, "not fused": 5}.get(case, 1)
    expected, largest = by_hand(twin, data, losses_of, names)
    assert largest > 1
    run = watch.trajectory()
    assert run.step.values.tolist() == list(range(STEPS))
    np.testing.assert_allclose(measured(run), expected, rtol=1e-4, atol=1e-6)
    assert run.final_norm.item() == pytest.approx(float(weights(model, names).norm()), rel=1e-6)
    assert run.attrs["skipped_steps"] == 0
    if build is llama:
        assert run.attrs["wd"] == WD
        assert run.attrs["optimizer"] == repr(theory.AdamW(dim=len(weights(model, names))))
    (report,) = watch.check_steps()
    assert all("clipping" in finding for finding in report.findings)
    inner = trainer.optimizer.optimizer
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not inner._optimizer_step_pre_hooks
    assert not inner._optimizer_step_post_hooks


class Scaling(Ordered):
    """Trainer with a gradient scaler on the CPU; the gradients of `overflows` are infinite."""

    overflows = (0, 4)

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    def _clip_grad_norm(self, model):
        if self.state.global_step in self.overflows:
            next(model.parameters()).grad.view(-1)[0] = torch.inf
        self.accelerator.scaler.unscale_(self.optimizer.optimizer)
        return super()._clip_grad_norm(model)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_steps_that_a_scaler_skips_are_counted_and_left_out(optim, tmp_path):
    watch, data, twin = empirical.TrainerMonitorCallback(), texts(), llama()
    fit(llama(), data, tmp_path, watch, kind=Scaling, optim=optim)
    names = [name for group in watch.monitor.groups.values() for name in group.weights]
    # Accelerate does not notice that a fused optimizer skips a step
    options = {"skipped": Scaling.overflows, "schedule_waits": optim == "adamw_torch"}
    expected, _ = by_hand(twin, data, text_losses, names, **options)
    run = watch.trajectory()
    assert run.attrs["skipped_steps"] == watch.monitor.skipped == 2
    np.testing.assert_allclose(measured(run), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", [False, True])
def test_training_is_the_same_to_the_last_bit(given, tmp_path):
    def trained(*callbacks):
        # dropout and the order of samples take from the random state that finding the weights must leave alone
        model = llama(attention_dropout=0.2)
        fit(model, texts(), tmp_path, *callbacks, kind=transformers.Trainer)
        of_numpy = np.random.get_state()[1]  # noqa: NPY002 (the Trainer seeds the global generator)
        return model.state_dict(), torch.get_rng_state(), of_numpy, random.getstate()

    inputs = {"input_ids": torch.arange(36).reshape(4, 9)} if given else None
    alone, watched = trained(), trained(empirical.TrainerMonitorCallback(inputs))
    assert all(torch.equal(alone[0][name], watched[0][name]) for name in alone[0])
    assert torch.equal(alone[1], watched[1])
    assert (alone[2] == watched[2]).all()
    assert alone[3] == watched[3]


def test_training_goes_on_from_a_checkpoint(tmp_path):
    whole, rest = empirical.TrainerMonitorCallback(), empirical.TrainerMonitorCallback()
    options = {"save_strategy": "steps", "save_steps": 3, "save_only_model": False}
    fit(llama(), texts(), tmp_path, whole, **options)
    fit(llama(), texts(), tmp_path, rest, resume=str(tmp_path / "checkpoint-3"), **options)
    run = rest.trajectory()
    assert run.step.values.tolist() == list(range(3, STEPS))
    np.testing.assert_allclose(measured(run), measured(whole.trajectory())[3:], rtol=1e-6)


class FailingNet(BatchNormNet):
    """Its forward pass fails at the eleventh call in training."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, values, labels=None):
        self.calls += 1
        if self.calls == 11:
            raise RuntimeError("failed")
        return super().forward(values, labels)


def test_training_that_fails_can_be_repeated(tmp_path):
    watch, model = empirical.TrainerMonitorCallback(), FailingNet()
    trainer = trainer_of(model, vectors(), tmp_path, watch)
    with pytest.raises(RuntimeError, match="failed"):
        trainer.train()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    # two micro-batches a step, one in the last step of the first epoch
    assert watch.trajectory().sizes["step"] == 5
    inner = trainer.optimizer.optimizer
    assert len(inner._optimizer_step_pre_hooks) == 1
    watch.remove_hooks()
    assert not inner._optimizer_step_pre_hooks
    assert not inner._optimizer_step_post_hooks
    assert watch.trajectory().sizes["step"] == 5
    trainer.train()
    assert watch.trajectory().sizes["step"] == STEPS
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks


def test_a_failure_outside_the_model_leaves_hooks_until_the_next_training(tmp_path):
    def collate(samples):
        calls.append(len(samples))
        if len(calls) == 5:
            raise RuntimeError("failed")
        return transformers.default_data_collator(samples)

    calls, watch, model = [], empirical.TrainerMonitorCallback(), BatchNormNet()
    trainer = trainer_of(model, vectors(), tmp_path, watch, collator=collate)
    with pytest.raises(RuntimeError, match="failed"):
        trainer.train()
    assert len(model._forward_hooks) == 1
    trainer.train()
    assert watch.trajectory().sizes["step"] == STEPS
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks


def test_a_model_without_scale_invariant_weights_is_refused(tmp_path):
    watch, model = empirical.TrainerMonitorCallback(), BatchNormNet()
    model.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    trainer = trainer_of(model, vectors(), tmp_path, watch)
    with pytest.raises(ValueError, match="model must have scale-invariant weights, got none"):
        trainer.train()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks
    with pytest.raises(ValueError, match="trainer must have begun"):
        watch.trajectory()


def test_a_loss_that_the_model_does_not_return_is_nan(tmp_path):
    def loss_func(outputs, labels, num_items_in_batch=None):
        return cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    watch = empirical.TrainerMonitorCallback()
    fit(BatchNormNet(), vectors(), tmp_path, watch, more={"compute_loss_func": loss_func})
    run = watch.trajectory()
    assert run.sizes["step"] == STEPS
    assert np.isnan(run.loss).all()
    assert np.isfinite(run.grad_norm).all()


class ByPosition(Ordered):
    """Trainer that calls the model with positional arguments."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["values"], labels=inputs["labels"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


def test_evaluation_and_positional_arguments_do_not_matter(tmp_path):
    plain, other = empirical.TrainerMonitorCallback(), empirical.TrainerMonitorCallback()
    fit(BatchNormNet(), vectors(), tmp_path, plain)
    more = {"eval_dataset": vectors(12)}
    options = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    fit(BatchNormNet(), vectors(), tmp_path, other, kind=ByPosition, more=more, **options)
    np.testing.assert_array_equal(measured(other.trajectory()), measured(plain.trajectory()))


def test_batches_of_one_sample(tmp_path):
    watch, several = empirical.TrainerMonitorCallback(), empirical.TrainerMonitorCallback()
    fit(llama(), texts(4), tmp_path, watch, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    fit(llama(), texts(4), tmp_path, several)
    assert list(watch.monitor.groups) == list(several.monitor.groups)
    assert watch.trajectory().sizes["step"] == 2


def test_options_are_those_of_the_monitor(tmp_path):
    class Writer(list):
        def add_scalar(self, tag, scalar_value, global_step):
            self.append((tag, global_step))

    whole, norms, writer = empirical.TrainerMonitorCallback(), [], Writer()
    fit(BatchNormNet(), vectors(), tmp_path, whole)
    some = empirical.TrainerMonitorCallback(
        weights=["net.0.weight"], every=3, norms_only=True, writer=writer, write_every=2
    )

    class Noting(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            norms.append(float(model.net[0].weight.detach().norm()))

    fit(BatchNormNet(), vectors(), tmp_path, some, Noting())
    run = some.trajectory("net.0.weight")
    assert run.step.values.tolist() == [0, 3, 6]
    assert "rotation" not in run
    np.testing.assert_allclose(run.norm, norms[::3], rtol=1e-6)
    np.testing.assert_allclose(run.norm, whole.trajectory().norm[::3], rtol=1e-12)
    assert {step for _, step in writer} == {0, 3, 6}


def test_the_forecast_goes_to_the_end_of_training(tmp_path, monkeypatch):
    def forecast(self, group=None, **options):
        if isinstance(options["schedule"], PacedScheduler):
            options["schedule"] = self._future_lrs(options["schedule"], next(iter(self.groups)), options["steps_left"])
        asked.append(options)

    class Asking(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                watch.forecast()
                watch.forecast(rotation=0.1, steps_left=2, schedule=[1.0, 0.5, 0.1])

    asked, watch = [], empirical.TrainerMonitorCallback()
    monkeypatch.setattr(empirical.Monitor, "forecast", forecast)
    fit(llama(), texts(), tmp_path, watch, Asking())
    watch.forecast()
    own, given, ended = asked
    assert own["steps_left"] == STEPS - 5
    np.testing.assert_allclose([own["schedule"](step) for step in (4, 5, 6, 7)], [lr_of_step(s) for s in (4, 5, 6, 7)])
    assert (given["rotation"], given["steps_left"], given["schedule"]) == (0.1, 2, [1.0, 0.5, 0.1])
    assert (ended["steps_left"], ended["schedule"]) == (None, None)


def test_misuse_is_named(tmp_path):
    with pytest.raises(ValueError, match="write_every"):
        empirical.TrainerMonitorCallback(write_every=0)
    with pytest.raises(ValueError, match="every"):
        empirical.TrainerMonitorCallback(every=0)
    watch = empirical.TrainerMonitorCallback()
    for ask in (watch.trajectory, watch.forecast, watch.table, watch.check_steps):
        with pytest.raises(ValueError, match="trainer must have begun to train"):
            ask()
    with pytest.raises(ValueError, match=r"weights.*3\.weight"):
        fit(BatchNormNet(), vectors(), tmp_path, empirical.TrainerMonitorCallback(weights=["net.3.weight"]))


class PartOnly(Ordered):
    """Trainer that calls a part of the model only."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return cross_entropy(model.net(inputs["values"]), inputs["labels"])


def test_inputs_are_needed_where_the_model_is_not_called(tmp_path):
    with pytest.raises(ValueError, match="inputs must be given, because BatchNormNet was not called"):
        fit(BatchNormNet(), vectors(), tmp_path, empirical.TrainerMonitorCallback(), kind=PartOnly)
    watch = empirical.TrainerMonitorCallback({"values": torch.randn(8, 5)})
    fit(BatchNormNet(), vectors(), tmp_path, watch, kind=PartOnly)
    assert watch.trajectory().sizes["step"] == STEPS


def test_without_transformers_all_else_works():
    code = """
import sys
import torch, empirical
assert empirical.Monitor and not {"transformers", "accelerate"} & set(sys.modules)
sys.modules["transformers"] = None
import empirical.measures.transformers_callback
try:
    empirical.TrainerMonitorCallback()
except ImportError as error:
    print(str(error).split(": ")[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "pip install 'bnwd[transformers]', or pip install transformers accelerate"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(empirical.TrainerMonitorCallback).replace("  # doctest: +SKIP", "")
    names = {**vars(transformers_callback), "nn": nn}
    example = doctest.DocTestParser().get_doctest(text, names, "TrainerMonitorCallback", None, None)
    assert len(example.examples) > 5
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert results.failed == 0, capsys.readouterr().out
