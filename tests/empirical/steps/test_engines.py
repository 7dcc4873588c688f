import copy
import dataclasses
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import theory
from empirical.config import RunConfig
from empirical.data import batch_indices, load_data
from empirical.groups import scale_invariant_groups
from empirical.networks import build_network
from empirical.steps import (
    ENGINES,
    Hyper,
    Problem,
    ReplicaEngine,
    TrainingState,
    WeightLayout,
    choose_engine,
    telemetry,
)
from empirical.steps.engines import compiler_error

LR, WD, STEPS = 0.3, 0.05, 12


@functools.cache
def digits(dtype):
    return load_data("digits", getattr(torch, dtype), torch.device("cpu"))


@functools.cache
def invariant_groups(model, **settings):
    """Groups of a network; they depend neither on its seed, width and type nor on ε."""
    net = build_network(RunConfig(lr=LR, wd=WD, model=model, width=8, **settings), digits("float32").inputs, 10)
    return {name: group.weights for name, group in scale_invariant_groups(net, digits("float32").inputs).items()}


def problem(model="mlp", dtype="float64", optimizer=None, width=8, seed=0, norm_eps=1e-12, **settings):
    config = RunConfig(lr=LR, wd=WD, model=model, width=width, dtype=dtype, seed=seed, norm_eps=norm_eps, **settings)
    data, groups = digits(dtype), invariant_groups(model, **settings)
    net = build_network(config, data.inputs, 10)
    return Problem(net, WeightLayout.of(net, groups), data.inputs, data.targets, optimizer or theory.SGD())


def hyper(steps, replicas=1, lr=LR, other=None):
    lrs = torch.full((replicas, steps), lr, dtype=torch.float64)
    other_lrs = lrs if other is None else torch.full_like(lrs, other)
    return Hyper(lrs, other_lrs, torch.full((replicas,), WD, dtype=torch.float64))


def batches(steps, *data_seeds):
    rows = [batch_indices(1437, 32, "without_replacement", seed, 0, steps) for seed in data_seeds or (0,)]
    return torch.as_tensor(np.stack(rows))


# the steps that a GPU captures, without capture; the buffers are filled several times
CapturedEngine = functools.partial(ReplicaEngine, captures=True, capacity=5)
# compiling is slow and has its own tests below
KINDS = {name: kind for name, kind in ENGINES.items() if name != "compiled"} | {"captured": CapturedEngine}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def engine(request):
    def make(task):
        try:
            return request.param(task)
        except ValueError as error:
            pytest.skip(str(error))

    return make


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("scale_invariant", [True, False])
def test_steps_equal_those_of_torch_and_telemetry_that_of_plain_vectors(engine, model, scale_invariant):
    task = problem(model, scale_invariant=scale_invariant)
    indices = batches(STEPS)
    state, rows = engine(task).advance(TrainingState.of(task), hyper(STEPS), indices)
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
        # the arc cosine has half of the digits for small angles
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
def test_splitting_the_steps_changes_nothing(engine, cuts):
    task, indices = problem(dtype="float32"), batches(STEPS)
    whole, rows = engine(task).advance(TrainingState.of(task), hyper(STEPS), indices)
    state, parts, at = TrainingState.of(task), [], 0
    cutter = engine(task)
    for count in cuts:
        state, part = cutter.advance(state, hyper(count), indices[:, at : at + count])
        parts.append(part)
        at += count
    assert torch.equal(state.weights, whole.weights)
    assert np.concatenate(parts, axis=1).tobytes() == rows.tobytes()


def test_arguments_are_not_changed(engine):
    task, indices = problem(), batches(STEPS)
    state = TrainingState.of(task)
    before = state.weights.clone()
    engine(task).advance(state, hyper(STEPS), indices)
    assert torch.equal(state.weights, before)
    assert torch.equal(TrainingState.of(task).weights, before)


def test_other_weights_use_their_own_lr(engine):
    task = problem(scale_invariant=False)
    state, _ = engine(task).advance(TrainingState.of(task), hyper(STEPS, other=0.0), batches(STEPS))
    measured = task.layout.measured_size
    assert torch.equal(state.weights[:, measured:], TrainingState.of(task).weights[:, measured:])
    assert not torch.equal(state.weights[:, :measured], TrainingState.of(task).weights[:, :measured])


@pytest.mark.parametrize(
    "rule",
    [theory.SGD(momentum=0.9), theory.SGD(momentum=0.9, nesterov=True), theory.Adam(dim=1), theory.AdamW(dim=1)],
    ids=repr,
)
@pytest.mark.parametrize("scale_invariant", [True, False])
def test_every_optimizer_equals_that_of_torch(engine, rule, scale_invariant):
    lr, wd = 0.01, 0.05
    task, indices = problem(optimizer=rule, scale_invariant=scale_invariant), batches(STEPS)
    lrs = torch.full((1, STEPS), lr, dtype=torch.float64)
    state = TrainingState.of(task)
    cutter = engine(task)
    for part in (slice(0, 5), slice(5, STEPS)):
        now = Hyper(lrs[:, part], lrs[:, part], torch.tensor([wd], dtype=torch.float64))
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
    start = TrainingState.of(task)
    state, rows = ENGINES[name](task).advance(start, hyper(1), indices[:, :1])
    return state.weights - start.weights, rows


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("eps", [1e-12, 1e-3])
@pytest.mark.parametrize(("model", "width"), [("mlp", 8), ("convnet", 8), ("convnet", 3)])
@pytest.mark.parametrize("fast", ["kernel", "replicas"])
def test_the_fast_step_equals_the_eager_one(fast, model, width, dtype, tolerance, eps):
    for seed in range(3):
        check_the_step(fast, problem(model, dtype=dtype, norm_eps=eps, seed=seed, width=width), seed, tolerance)


def images_problem(depth, shape, width=3, dtype="float64", **settings):
    """ConvNet of any depth on random images of any size."""
    generator = torch.Generator().manual_seed(depth)
    images = torch.randn(200, *shape, generator=generator, dtype=getattr(torch, dtype))
    config = RunConfig(lr=LR, wd=WD, model="convnet", width=width, depth=depth, dtype=dtype, **settings)
    net = build_network(config, images, 5)
    groups = {name: (name,) for name, p in net.named_parameters() if p.requires_grad}
    targets = torch.randint(5, (200,), generator=generator)
    return Problem(net, WeightLayout.of(net, groups), images, targets, theory.SGD())


@pytest.mark.parametrize("batch", [7, 32])
@pytest.mark.parametrize(
    ("depth", "shape"),
    # sizes that poolings do not divide, last poolings over several pixels, ten convolutions; each depth is compiled
    [
        (2, (3, 9, 13)),
        (3, (3, 32, 32)),
        (9, (1, 8, 8)),
        *(
            pytest.param(*case, marks=pytest.mark.acceptance)
            for case in [(1, (1, 8, 8)), (4, (1, 28, 28)), (5, (3, 16, 16))]
        ),
    ],
)
def test_the_kernel_trains_convnets_of_any_size(depth, shape, batch):
    task = images_problem(depth, shape)
    indices = torch.as_tensor(batch_indices(200, batch, "without_replacement", depth, 0, 1))[None]
    (eager, rows), (kernel, other_rows) = (one_step(name, task, indices) for name in ("eager", "kernel"))
    assert (eager - kernel).norm() <= 1e-11 * eager.norm()
    for name in ("loss", "norm", "grad_norm", "group_grad_norm"):
        np.testing.assert_allclose(other_rows[name], rows[name], rtol=1e-10)


def test_kernel_steps_of_different_batch_sizes_do_not_disturb_each_other():
    task = images_problem(3, (1, 8, 8))
    engine, start = ENGINES["kernel"](task), TrainingState.of(task)
    large, small = (torch.arange(count)[None, None] for count in (50, 20))
    first, _ = engine.advance(start, hyper(1), large)
    engine.advance(start, hyper(1), small)
    again, _ = engine.advance(start, hyper(1), large)
    assert torch.equal(first.weights, again.weights)


def check_the_step(fast, task, seed, tolerance):
    indices = batches(1, seed)
    (eager, rows), (other, other_rows) = (one_step(name, task, indices) for name in ("eager", fast))
    assert (eager - other).norm() <= tolerance * eager.norm()
    for name in rows.dtype.names:
        # the defect consists of rounding errors
        margin = {"atol": tolerance} if "defect" in name else {"rtol": 10 * tolerance}
        np.testing.assert_allclose(other_rows[name], rows[name], **{"rtol": 0, **margin})


def repeated(state, scales):
    """Replicas of one state with scaled weights."""
    scales = torch.tensor(scales, dtype=state.weights.dtype)

    def rows(values):
        return values.repeat(len(scales), *(1 for _ in values.shape[1:]))

    return TrainingState(
        rows(state.weights) * scales[:, None],
        {name: rows(buffer) for name, buffer in state.buffers.items()},
        tuple(rows(slot) for slot in state.slots),
    )


def check_replicas(kind, task, scales, lrs, rtol=1e-8):
    many, one = repeated(TrainingState.of(task), scales), TrainingState.of(task)
    lr = torch.tensor(lrs, dtype=torch.float64)[:, None].expand(-1, STEPS)
    decay = torch.linspace(0.01, 0.05, len(scales), dtype=torch.float64)
    indices = batches(STEPS, *range(len(scales)))
    state, rows = kind(task).advance(many, Hyper(lr, lr, decay), indices)
    for replica in range(len(scales)):
        part = slice(replica, replica + 1)
        start = TrainingState(many.weights[part], one.buffers, one.slots)
        alone, alone_rows = ENGINES["eager"](task).advance(start, Hyper(lr[part], lr[part], decay[part]), indices[part])
        torch.testing.assert_close(state.weights[replica], alone.weights[0], rtol=rtol, atol=rtol / 1000)
        for name in ("loss", "norm", "grad_norm", "rotation", "group_norm"):
            np.testing.assert_allclose(rows[name][replica], alone_rows[name][0], rtol=10 * rtol)
        for name, buffer in alone.buffers.items():
            torch.testing.assert_close(state.buffers[name][replica], buffer[0], equal_nan=True)


@pytest.mark.parametrize("optimizer", [theory.SGD(), theory.SGD(momentum=0.9), theory.AdamW(dim=1)], ids=repr)
@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_replicas_equal_separate_runs(engine, model, optimizer):
    task, lrs = problem(model, optimizer=optimizer, width=4), np.array([0.3, 0.1, 0.05])
    if isinstance(optimizer, theory.AdamW):
        # AdamW divides by the size of the gradient, which amplifies the rounding of tiny gradients
        check_replicas(engine, task, [1.0, 2.0, 0.5], 0.1 * lrs, rtol=1e-5)
    else:
        check_replicas(engine, task, [1.0, 2.0, 0.5], lrs)


def test_replicas_keep_their_own_running_statistics():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)).double()
    data = load_data("digits", torch.float64, torch.device("cpu"))
    task = Problem(net, WeightLayout.of(net, {"w": ("1.weight",)}), data.inputs, data.targets, theory.SGD())
    for kind in (ReplicaEngine, CapturedEngine):
        check_replicas(kind, task, [1.0, 2.0, 0.5], [0.3, 0.1, 0.05])


def test_more_steps_than_the_buffers_of_a_captured_step_hold():
    task, steps = problem(), 2 * 5 + 3
    (one, rows), (two, other_rows) = (
        kind(task).advance(TrainingState.of(task), hyper(steps), batches(steps))
        for kind in (ReplicaEngine, CapturedEngine)
    )
    assert torch.equal(one.weights, two.weights)
    assert rows.tobytes() == other_rows.tobytes()


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_bfloat16_is_close_to_float32_and_keeps_float32_weights(model):
    full = problem(model, dtype="float32")
    half = dataclasses.replace(full, autocast=torch.bfloat16)
    indices = batches(1)
    (exact, rows), *others = (
        ENGINES[name](task).advance(TrainingState.of(task), hyper(1), indices)
        for name, task in (("eager", full), ("eager", half), ("replicas", half))
    )
    for state, own in others:
        assert state.weights.dtype == torch.float32
        assert not torch.equal(state.weights, exact.weights)
        # 8 bits
        np.testing.assert_allclose(own["loss"], rows["loss"], rtol=2e-2)
        np.testing.assert_allclose(own["grad_norm"], rows["grad_norm"], rtol=1e-1)
    with pytest.raises(ValueError, match=r"kernel.*torch\.bfloat16"):
        ENGINES["kernel"](half)


@pytest.fixture
def _needs_a_compiler():
    if compiler_error("cpu"):
        pytest.skip(compiler_error("cpu"))


@pytest.mark.usefixtures("_needs_a_compiler")
def test_the_compiled_engine_equals_the_eager_one():
    # each problem is compiled anew, for seconds
    check_the_step("compiled", problem(dtype="float32"), 0, 1e-5)
    task = problem(scale_invariant=False, optimizer=theory.SGD(momentum=0.9))
    check_replicas(ENGINES["compiled"], task, [1.0, 2.0], [0.3, 0.1])


@pytest.mark.usefixtures("_needs_a_compiler")
@pytest.mark.acceptance
def test_the_compiled_engine_equals_the_eager_one_for_more_problems():
    check_the_step("compiled", problem(), 0, 1e-12)
    check_the_step("compiled", problem("convnet", dtype="float32"), 0, 1e-5)
    check_replicas(ENGINES["compiled"], problem("convnet"), [1.0, 2.0], [0.3, 0.1])
    check_replicas(ENGINES["compiled"], problem(scale_invariant=False), [1.0], [0.3])


def test_the_compiled_engine_raises_for_changing_buffers():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)).double()
    task = dataclasses.replace(problem(), model=net, layout=WeightLayout.of(net, {}))
    with pytest.raises(ValueError, match=r"compiled.*'2\.running_mean'"):
        ENGINES["compiled"](task)


def test_the_compiled_engine_raises_without_a_compiler(tmp_path):
    code = (
        "import empirical\n"
        "try: empirical.train(empirical.RunConfig(lr=0.1, wd=0.1, steps=1, engine='compiled'))\n"
        "except ValueError as error: print(error)"
    )
    nowhere = {"CXX": str(tmp_path / "none"), "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=nowhere, capture_output=True, text=True)
    assert "got 'compiled', but torch.compile does not work" in done.stdout, done.stderr


def test_the_fastest_engine_is_chosen_and_unsuitable_ones_raise():
    assert choose_engine(problem(), 64) == choose_engine(problem("convnet"), 64) == "kernel"
    for other in (
        problem(scale_invariant=False),
        problem(optimizer=theory.SGD(momentum=0.9)),
        problem(scale_invariant=False, normalization="none"),
    ):
        assert choose_engine(other, 64) == "replicas"
        with pytest.raises(ValueError, match=r"engine.*'kernel'"):
            ENGINES["kernel"](other)
    look_alike = problem()
    look_alike.model.relu1 = torch.nn.GELU()
    assert choose_engine(look_alike, 64) == "replicas"
    look_alike = problem("convnet")
    look_alike.model.conv2.stride = (2, 2)
    assert choose_engine(look_alike, 64) == "replicas"


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "compiled"])
@pytest.mark.parametrize("model", ["mlp", "convnet"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    norm=st.floats(-15, 15).map(lambda power: 10.0**power),
    lr=st.floats(-3, 1).map(lambda power: 10.0**power),
    eps=st.sampled_from([1e-37, 1e-24, 1e-12, 1e-5]),
    seed=st.integers(0, 100),
)
def test_float32_fails_only_where_float64_does(name, model, norm, lr, eps, seed):
    """Small norms make large steps: a whole destabilization is within the range of float32."""
    ends = {}
    for dtype in ("float32", "float64"):
        task = problem(model, dtype=dtype, norm_eps=eps, width=4, seed=seed)
        state = TrainingState.of(task)
        state.weights.mul_(norm / state.weights.double().norm())
        _, rows = ENGINES[name](task).advance(state, hyper(5, lr=lr), batches(5, seed))
        ends[dtype] = rows[0]
    wide = ends["float64"]
    for column in ("loss", "norm", "next_norm", "grad_norm", "rotation"):
        assert np.isfinite(wide[column]).all()
        assert np.isfinite(ends["float32"][column]).all(), column
    # the first step agrees too; its gradient is only rounding if ε dominates the variance
    np.testing.assert_allclose(ends["float32"]["next_norm"][0], wide["next_norm"][0], rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_gpu_steps_equal_cpu_steps(model):
    here = problem(model)
    net = copy.deepcopy(here.model).cuda()
    there = dataclasses.replace(here, model=net, inputs=here.inputs.cuda(), targets=here.targets.cuda())
    many = repeated(TrainingState.of(here), [1.0, 2.0, 0.5])
    moved = TrainingState(many.weights.cuda(), {name: buffer.cuda() for name, buffer in many.buffers.items()})
    indices, steps = batches(STEPS, 1, 2, 3), hyper(STEPS, replicas=3)
    slow, rows = ReplicaEngine(here).advance(many, steps, indices)
    # the second call replays the captured graph
    engine = ReplicaEngine(there)
    for _ in range(2):
        fast, other_rows = engine.advance(moved, steps, indices.cuda())
        torch.testing.assert_close(fast.weights.cpu(), slow.weights, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(other_rows["grad_norm"], rows["grad_norm"], rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scalar_products_are_the_same_on_either_kind_of_device(dtype):
    torch.manual_seed(0)
    before, gradient, after = torch.randn(3, 4, 50, dtype=dtype)
    slices, products = [slice(0, 7), slice(7, 40)], torch.empty(2, 4, 2, 3, 3, dtype=torch.float64)
    telemetry.scalar_products(before, gradient, after, slices, products[0])
    telemetry.products_by_torch(before, gradient, after, slices, products[1])
    # sums of 33 products in double precision
    torch.testing.assert_close(products[0], products[1], rtol=1e-12, atol=1e-12)


def test_a_loss_that_overflows_is_not_hidden(engine):
    task = problem(dtype="float32")
    state = TrainingState.of(task)
    state.weights[:] = torch.inf
    _, rows = engine(task).advance(state, hyper(2), batches(2))
    assert not np.isfinite(rows["loss"]).any()


COMPILED_RUN = """
import hashlib, torch
from empirical import RunConfig, train
from empirical.runs.loop import load_model
torch.set_num_threads(1)
train(RunConfig(lr=0.5, wd=0.01, model="{model}", width=8, steps=200, engine="kernel"), "run", progress=False)
for name, weights in load_model("run").state_dict().items():
    print(name, hashlib.sha256(weights.numpy().tobytes()).hexdigest())
"""


@pytest.mark.parametrize("model", ["mlp", pytest.param("convnet", marks=pytest.mark.acceptance)])
def test_compiled_code_from_the_cache_gives_identical_results(tmp_path, model):
    printed = []
    for number in ("compiled", "loaded"):
        (tmp_path / number).mkdir()
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", COMPILED_RUN.format(model=model)],
            env=environment,
            cwd=tmp_path / number,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]


def test_compiled_steps_take_no_more_threads_than_torch():
    task, threads_used = problem(), []
    engine = ENGINES["kernel"](task)
    compiled = engine.train_steps

    def watched(*arguments):
        threads_used.extend(
            pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"
        )
        compiled(*arguments)

    engine.train_steps = watched
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
            engine.advance(TrainingState.of(task), hyper(3), batches(3))
    finally:
        torch.set_num_threads(threads)
    assert set(threads_used) == {1}
