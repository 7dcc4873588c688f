import math

import numpy as np
import pytest
import xarray as xr
from scipy.integrate import quad
from scipy.optimize import brentq

import simulate
import theory
from simulate import NormalizedRegression, Ratio2D, RayleighQuotient, phase_diagram
from simulate.period_model.model import simulated_periods
from simulate.trajectories.contract import SCHEMA, VARIABLES, versions

VERDICTS = {"equilibrium", "periodic", "no clear period", "collapsed", "diverged"}
NUMBERS = {"period", "period_stderr", "outside_growth", "norm_min", "norm_max", "log_norm_sd", "rotation_ratio"}


def regression(batch_size=None, loss="squared", examples=400):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(examples, 10))
    targets = 3 * generator.normal(size=examples)
    return NormalizedRegression(
        inputs, np.sign(targets) if loss == "logistic" else targets, batch_size=batch_size, loss=loss
    )


class TestTheDataset:
    LR, WD = [0.05, 0.5, 1.0], [0.01, 0.03, 0.1, 0.3]
    DIAGRAM = phase_diagram(LR, WD, model=Ratio2D(1.0, 5.0), seed=3)

    def test_axes_variables_and_units(self):
        diagram = self.DIAGRAM
        assert dict(diagram.sizes) == {"lr": 3, "wd": 4}
        assert diagram.lr.values.tolist() == self.LR
        assert diagram.wd.values.tolist() == self.WD
        assert set(diagram.data_vars) == NUMBERS | {"verdict"}
        assert set(diagram.verdict.values.ravel()) <= VERDICTS
        for name, variable in diagram.variables.items():
            assert (variable.attrs["units"], variable.attrs["long_name"]) == VARIABLES[name]

    def test_attributes_describe_how_to_reproduce_it(self):
        attributes = self.DIAGRAM.attrs
        assert attributes["source"] == "phase_diagram"
        assert attributes["schema"] == SCHEMA
        assert versions().items() <= attributes.items()
        assert attributes["model"] == "Ratio2D(sharpness=1.0, highest=5.0)"
        assert attributes["optimizer"] == "SGD()"
        assert (attributes["seed"], attributes["rise"], attributes["relaxations"]) == (3, 0.1, 60.0)
        # the edge of stability
        assert attributes["effective_lr"] == 2.0

    def test_each_cell_is_what_classify_says_of_its_run(self):
        for i, lr in enumerate(self.LR):
            for j, wd in enumerate(self.WD):
                intrinsic_lr = lr * wd
                run = simulate.descend(
                    Ratio2D(1.0, 5.0),
                    lr,
                    wd,
                    steps=math.ceil(60 / intrinsic_lr),
                    seed=3,
                    norm=math.sqrt(lr / 2),
                    record_every=max(1, int(0.01 / intrinsic_lr)),
                )
                cell, classification = self.DIAGRAM.isel(lr=i, wd=j), simulate.classify(run)
                if cell.verdict.item() == "collapsed":
                    assert run.rotation.values[-1] == 0
                    continue
                settled = run.norm.values[run.step.values >= round(2 / intrinsic_lr)]
                assert cell.verdict.item() == classification.verdict
                expected = {
                    "period": classification.periods.mean,
                    "period_stderr": classification.periods.stderr,
                    "outside_growth": classification.periods.outside_growth,
                    "norm_min": settled.min(),
                    "norm_max": settled.max(),
                    "log_norm_sd": classification.log_norm_sd,
                    "rotation_ratio": classification.rotation_ratio,
                }
                assert {name: cell[name].item() for name in expected} == pytest.approx(expected, rel=0, nan_ok=True)

    def test_periods_are_long_enough_for_their_rise(self):
        periodic = self.DIAGRAM.where(self.DIAGRAM.verdict == "periodic")
        assert periodic.period.notnull().sum() >= 6
        decay = -np.log1p(-self.DIAGRAM.lr * self.DIAGRAM.wd)
        least = (periodic.period * decay).min()
        assert least >= 0.1
        assert (periodic.outside_growth.max() <= 0.9).item()
        # balance: growth that is not part of a norm rise is outside
        assert ((periodic.norm_max / periodic.norm_min).min() > math.exp(0.1)).item()

    def test_numbers_are_one_cell(self):
        diagram = phase_diagram(0.5, 0.1, model=Ratio2D(1.0, 5.0), seed=3)
        assert diagram.verdict.shape == (1, 1)
        xr.testing.assert_identical(diagram.isel(lr=0, wd=0, drop=True), self.DIAGRAM.sel(lr=0.5, wd=0.1, drop=True))

    def test_the_seed_and_the_rise_count(self):
        same, other = (phase_diagram(0.5, 0.1, model=Ratio2D(1.0, 5.0), seed=seed) for seed in (3, 4))
        assert same.period.item() == self.DIAGRAM.sel(lr=0.5, wd=0.1).period.item() != other.period.item()
        coarse = phase_diagram(0.5, 0.1, model=Ratio2D(1.0, 5.0), seed=3, rise=10.0)
        assert coarse.verdict.item() == "no clear period"
        assert np.isnan(coarse.period.item())
        assert coarse.attrs["rise"] == 10.0

    def test_a_longer_run_has_more_periods(self):
        short, long = (
            phase_diagram(0.5, 0.1, model=Ratio2D(1.0, 5.0), relaxations=length) for length in (60.0, 6000.0)
        )
        assert long.period_stderr.item() < 0.3 * short.period_stderr.item()

    def test_saved_and_loaded(self, tmp_path):
        simulate.save(self.DIAGRAM, tmp_path / "diagram")
        loaded = simulate.load(tmp_path / "diagram")
        assert loaded.verdict.values.tolist() == self.DIAGRAM.verdict.values.tolist()
        xr.testing.assert_equal(loaded.drop_vars("verdict"), self.DIAGRAM.drop_vars("verdict"))
        assert loaded.attrs == self.DIAGRAM.attrs

    def test_nothing_is_printed_without_a_terminal(self, capsys):
        phase_diagram(0.5, 0.1, model=Ratio2D(1.0, 5.0))
        assert capsys.readouterr() == ("", "")


class TestSymmetry:
    """Only ηλ counts where the start is at the norm √(η/η̃) (docs/mathematics.md §6)."""

    @pytest.mark.parametrize(
        "model",
        [
            Ratio2D(1.0, 0.2),
            Ratio2D(1.0, 5.0),
            RayleighQuotient([0.0, 0.5, 1.0, 2.0]),
            regression(batch_size=4),
            regression(loss="logistic", examples=40),
        ],
        ids=["valley", "ridge", "quotient", "mini-batches", "logistic"],
    )
    @pytest.mark.parametrize(
        "optimizer", [theory.SGD(), theory.SGD(momentum=0.9), theory.SGD(momentum=0.9, decoupled=True)], ids=repr
    )
    def test_equal_intrinsic_lrs_are_one_run_in_other_units(self, model, optimizer):
        lr, wd = 4.0 ** np.arange(-2, 1), 4.0 ** np.arange(-3, 0)
        diagram = phase_diagram(lr, wd, model=model, optimizer=optimizer)
        for shared in range(len(lr) + len(wd) - 1):
            cells = [diagram.isel(lr=i, wd=shared - i) for i in range(len(lr)) if 0 <= shared - i < len(wd)]
            for cell in cells:
                assert cell.verdict.item() == cells[0].verdict.item()
                unit = math.sqrt(cell.lr.item() / cells[0].lr.item())
                for name in NUMBERS:
                    scale = unit if name.startswith("norm") else 1.0
                    # η in a ratio of powers of 4: bit for bit, except for the logarithm
                    exact = 1e-13 if name == "log_norm_sd" else 0
                    np.testing.assert_allclose(cell[name], scale * cells[0][name], rtol=exact, atol=exact, err_msg=name)

    @pytest.mark.parametrize("highest", [0.1, 0.2, 5.0])
    def test_other_ratios_differ_by_rounding(self, highest):
        # several ηλ and η, away from the boundaries between verdicts
        intrinsic_lrs = np.array([0.004, 0.008, 0.02])
        verdicts, periods, errors = [], [], []
        for lr in (0.03, 0.7, 11.0):
            diagram = phase_diagram(lr, intrinsic_lrs / lr, model=Ratio2D(1.0, highest), relaxations=1000)
            verdicts.append(diagram.verdict.values[0].tolist())
            periods.append(diagram.period.values[0] * intrinsic_lrs)
            errors.append(diagram.period_stderr.values[0] * intrinsic_lrs)
        assert all(row == verdicts[0] for row in verdicts)
        assert verdicts[0] == ["periodic" if highest > 0.5 else "equilibrium"] * 3
        if highest > 0.5:
            # one step in a period of some hundred, beside the statistical error
            apart = abs(np.array(periods) - np.mean(periods, axis=0))
            assert (apart < 4 * np.array(errors) + 0.01).all()


def slopes(angle, q):
    """First and second derivative of f/h = sin²φ/(2(cos²φ + q sin²φ))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    below = cosine**2 + q * sine**2
    return sine * cosine / below**2, (cosine**2 - sine**2) / below**2 - 4 * (q - 1) * (sine * cosine) ** 2 / below**3


def cycle(intrinsic_lr, q):
    """η̃h of the cycle of period 2 across the valley, in which the norm is constant, and growth of deviations per cycle.

    Every step turns by θ = arccos(1-ηλ), from φ to φ-θ and back: the slopes there are opposite and equal. As long as
    φ = θ/2 is within the inflection of the valley it is the only pair. Beyond, that pair repels, and two others appear
    that are mirror images of each other. A step has η̃f'(φ) = s tan θ, and in (φ, ln ρ) the Jacobian
    ((1-A, 2sS), (A tan θ, 1-2S²)), A = sη̃f'', s = cos θ, S = sin θ; the step back has it with -θ for θ.
    """
    s = 1 - intrinsic_lr
    turn = math.acos(s)
    angle = turn / 2
    if slopes(angle, q)[1] < 0:
        angle = brentq(lambda phi: slopes(phi, q)[0] - slopes(turn - phi, q)[0], angle * (1 + 1e-6), turn)
    effective_lr = s * math.tan(turn) / slopes(angle, q)[0]
    jacobian = np.eye(2)
    for phi, way in ((angle, 1), (angle - turn, -1)):
        curved, sine = s * effective_lr * slopes(phi, q)[1], way * math.sin(turn)
        step = [[1 - curved, 2 * s * sine], [curved * sine / s, 1 - 2 * sine**2]]
        jacobian = step @ jacobian
    return effective_lr, max(abs(np.linalg.eigvals(jacobian)))


def stability_limit(q):
    """Smallest ηλ at which the cycle repels, for q > 1."""
    grid = np.arange(0.001, 0.999, 0.002)
    repels = next(intrinsic_lr for intrinsic_lr in grid if cycle(intrinsic_lr, q)[1] > 1)
    return brentq(lambda intrinsic_lr: cycle(intrinsic_lr, q)[1] - 1, repels - 0.002, repels)


class TestEquilibriumOfRatio2D:
    """Equilibrium of `Ratio2D` near the edge of stability, and its limit, compared with linear stability."""

    @pytest.mark.parametrize(("highest", "verdict_changes"), [(0.05, 0.087), (0.1, 0.177), (0.2, 0.392)])
    def test_equilibrium_up_to_the_stability_limit(self, highest, verdict_changes):
        model, q = Ratio2D(1.0, highest), 1 / (2 * highest)
        limit = stability_limit(q)
        intrinsic_lrs = limit * 1.03 ** np.arange(-13.5, 7)
        diagram = phase_diagram(1.0, intrinsic_lrs, model=model, relaxations=3000).isel(lr=0)
        # a run that settles has only the spread of its transient, one part in some thousand
        assert (diagram.log_norm_sd[intrinsic_lrs < limit] < 2e-3).all()
        assert (diagram.log_norm_sd[intrinsic_lrs > limit] > 3e-3).all()
        verdicts = diagram.verdict.values
        assert set(verdicts[intrinsic_lrs < limit]) == {"equilibrium"}
        # oscillations around a repelling cycle grow with the distance from the limit, and the verdict allows weak ones
        assert set(verdicts[intrinsic_lrs < verdict_changes / 1.03]) == {"equilibrium"}
        assert set(verdicts[intrinsic_lrs > verdict_changes * 1.03]) <= {"periodic", "no clear period"}
        assert 1.05 < verdict_changes / limit < 1.14

    @pytest.mark.parametrize("highest", [0.05, 0.1, 0.2])
    def test_effective_lr_and_rotation(self, highest):
        model, q = Ratio2D(1.0, highest), 1 / (2 * highest)
        intrinsic_lrs = stability_limit(q) * np.linspace(0.1, 0.99, 12)
        inside = [slopes(math.acos(1 - intrinsic_lr) / 2, q)[1] > 0 for intrinsic_lr in intrinsic_lrs]
        assert 3 < sum(inside) < 12
        for intrinsic_lr, symmetric in zip(intrinsic_lrs, inside, strict=True):
            effective_lr, growth = cycle(intrinsic_lr, q)
            if growth > 0.97:
                continue
            run = simulate.descend(model, 1.0, intrinsic_lr, steps=int(1000 / intrinsic_lr), norm=math.sqrt(0.5))
            np.testing.assert_allclose(run.effective_lr[-100:], effective_lr, rtol=1e-6)
            np.testing.assert_allclose(run.rotation[-100:], math.acos(1 - intrinsic_lr), rtol=1e-6)
            # within the inflection it is that of docs/mathematics.md §4
            assert (effective_lr == pytest.approx(2 * (1 + (q - 1) * intrinsic_lr / 2) ** 2, rel=1e-9)) == symmetric

    @pytest.mark.parametrize("highest", [0.3, 0.4, 0.45, 0.55, 0.6, 0.8])
    def test_periods_begin_at_half_the_curvature(self, highest):
        lrs, wds = np.geomspace(0.1, 1.0, 4), np.geomspace(0.08, 0.1, 3)
        diagram = phase_diagram(lrs, wds, model=Ratio2D(1.0, highest), relaxations=400)
        assert set(diagram.verdict.values.ravel()) == {"equilibrium" if highest < 0.5 else "periodic"}
        assert all(
            (cycle(intrinsic_lr, 1 / (2 * highest))[1] < 1) == (highest < 0.5)
            for intrinsic_lr in np.outer(lrs, wds).ravel()
        )


class TestCollapse:
    """Decay that ends in an exact zero: the distance from the minimum underflows below 5e-324."""

    @staticmethod
    def boundary(ratio):
        """ηλ below which a decay phase from η̃h = `ratio` ends in a collapse.

        A step multiplies the distance y by 1-η̃h, up to ηλ, while ln η̃ grows by 2ηλ. The smallest number is rounded to
        itself where the factor is above 1/2 in size, that is from η̃h = 3/2 on: y must be zero before. From the smallest
        number back to 1 there are 744 units of ln y.
        """
        decay = quad(lambda s: -math.log(abs(1 - s)) / s, ratio, 1.0)[0]
        decay += quad(lambda s: -math.log(abs(1 - s)) / s, 1.0, 1.5)[0]
        return decay / (2 * -math.log(5e-324))

    @pytest.mark.parametrize("highest", [0.5, 5.0, 50.0])
    @pytest.mark.parametrize("ratio", [1e-4, 1e-3, 1e-2])
    def test_boundary_of_collapse_in_the_first_decay_phase(self, highest, ratio):
        limit = self.boundary(ratio)
        intrinsic_lrs = limit * 1.03 ** np.arange(-4.5, 5)
        diagram = phase_diagram(
            1.0, intrinsic_lrs, model=Ratio2D(1.0, highest), effective_lr=ratio, relaxations=10
        ).isel(lr=0)
        np.testing.assert_array_equal(diagram.verdict == "collapsed", intrinsic_lrs < limit)

    def test_it_does_not_depend_on_the_scale_of_the_loss(self):
        limit = self.boundary(1e-3)
        for sharpness in (10.0, 1e3):
            model = Ratio2D(sharpness, 50 * sharpness)
            diagram = phase_diagram(
                0.3, limit / 0.3 * np.array([0.97, 1.03]), model=model, effective_lr=1e-3 / sharpness
            )
            assert diagram.verdict.values[0].tolist() == ["collapsed", "periodic"]

    def test_numbers_of_an_ended_run_are_nan(self):
        diagram = phase_diagram(1.0, 1e-3, model=Ratio2D(1.0, 5.0), effective_lr=1e-3)
        assert diagram.verdict.item() == "collapsed"
        assert all(np.isnan(diagram[name].item()) for name in NUMBERS)

    def test_decay_alone_underflows(self):
        # ln ρ decreases by 1 in 1/ηλ steps, and the squared norm leaves at exp(-708)
        model = Ratio2D(1.0, 5.0)
        for relaxations, status in ((340, "complete"), (380, "collapsed")):
            run = simulate.descend(model, 1.0, 1e-2, steps=100 * relaxations, weights=[1.0, 0.0])
            assert run.status.item() == status
        # no random start is exactly at a minimum
        long = phase_diagram(1.0, 1e-3, model=model, effective_lr=1e-3, relaxations=400)
        assert long.verdict.item() == "collapsed"


class TestDivergence:
    def test_boundary_of_divergence(self):
        # r⁺ ≈ (ηg̃)²/r = ηη̃₀g̃² of the first step is the largest number
        model, effective_lr, lrs = Ratio2D(1.0, 5.0), 1e305, np.geomspace(3e3, 3e5, 50)
        first = simulate.descend(model, 1.0, 0.01, steps=1)
        limit = np.finfo(np.float64).max / (effective_lr * first.grad_norm.item() ** 2)
        assert lrs[5] < limit < lrs[-5]
        diagram = phase_diagram(lrs, 0.5 / lrs[-1], model=model, effective_lr=effective_lr, relaxations=4)
        np.testing.assert_array_equal(diagram.verdict.isel(wd=0) == "diverged", lrs > limit)


class TestNoise:
    def test_equilibrium_ends_where_the_spread_of_noise_passes_the_limit(self):
        model = regression(batch_size=4)
        intrinsic_lrs = np.geomspace(0.002, 0.2, 20)
        diagram = phase_diagram(0.5, intrinsic_lrs / 0.5, model=model, relaxations=500).isel(lr=0)
        # V of the mini-batches, at random points: targets that are noise make it the same everywhere
        weights = np.random.default_rng(1).normal(size=(4000, 10))
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        square = np.array([(model.gradient(w, model.batch(0, 0, t)) ** 2).sum() for t, w in enumerate(weights)])
        spread = theory.equilibrium_spread(0.5, intrinsic_lrs / 0.5, float(square.std() / square.mean())).deviation
        np.testing.assert_allclose(diagram.log_norm_sd, spread, rtol=0.08)
        # within 8 % of the limit the verdict is open
        sure = abs(np.log(spread / 0.05)) > 0.08
        assert sure.sum() >= 17
        np.testing.assert_array_equal((diagram.verdict == "equilibrium")[sure], spread[sure] < 0.05)


class TestStart:
    @pytest.mark.parametrize(
        ("model", "curvature"),
        [
            (Ratio2D(3.0, 0.2), 3.0),
            (RayleighQuotient([1.0, 2.0, 5.0]), 4.0),
            (NormalizedRegression([[3.0, 0.0], [0.0, 1.0]], [1.0, 0.0], output_norm=2.0), 18.0),
            (NormalizedRegression([[3.0, 0.0], [0.0, 1.0]], [1.0, -1.0], loss="logistic"), 1.125),
        ],
        ids=str,
    )
    def test_default_is_the_edge_of_stability(self, model, curvature):
        for rule in (theory.SGD(), theory.SGD(momentum=0.5), theory.SGD(momentum=0.5, nesterov=True)):
            diagram = phase_diagram(0.5, 0.2, model=model, optimizer=rule)
            critical = theory.critical_norm(0.5, curvature, optimizer=rule)
            assert 0.5 / diagram.attrs["effective_lr"] == pytest.approx(critical**2, rel=1e-12)

    def test_curvature_of_a_regression_is_attained_at_an_exact_fit(self):
        # fitted exactly there is no slope along the weights, and the bound is attained across them
        generator = np.random.default_rng(0)
        inputs = generator.normal(size=(30, 5))
        truth = np.linalg.svd(inputs)[2][-1]
        model = NormalizedRegression(inputs, inputs @ truth)
        curvature = 2.0 / phase_diagram(0.5, 0.2, model=model).attrs["effective_lr"]
        assert model.sharpness_at(truth) == pytest.approx(curvature, rel=1e-9)

    def test_start_may_be_chosen(self):
        near, far = (phase_diagram(1.0, 0.1, model=Ratio2D(), effective_lr=value) for value in (2.0, 1e-2))
        assert near.attrs["effective_lr"] == 2.0
        assert far.attrs["effective_lr"] == 1e-2
        # 2.6 relaxations of decay without gradients, of which 2 are left out
        assert far.norm_max.item() > 1.5 * near.norm_max.item()


GOOD = {"lr": 0.5, "wd": 0.1, "model": Ratio2D()}
BAD = [
    ({"lr": 0.0}, ValueError, r"^lr must be a finite number > 0, got 0.0"),
    ({"lr": "0.1"}, TypeError, r"^lr must be a finite number > 0 or an array of such numbers, got '0.1'"),
    ({"lr": [0.1, math.nan]}, ValueError, r"^lr must be .*got nan at index 1"),
    ({"lr": []}, ValueError, r"^lr must be a number or a list of at least one, got shape \(0,\)"),
    ({"lr": [[0.1]]}, ValueError, r"^lr must be a number or a list of at least one, got shape \(1, 1\)"),
    ({"lr": [0.2, 0.1]}, ValueError, r"^lr must increase, got 0.2 before 0.1 at index 1"),
    ({"wd": [0.1, 0.2, 0.2]}, ValueError, r"^wd must increase, got 0.2 before 0.2 at index 2"),
    ({"wd": 0}, ValueError, r"^wd must be a finite number > 0, got 0.0"),
    ({"wd": -1.0}, ValueError, r"^wd must be a finite number > 0, got -1.0"),
    (
        {"lr": [0.1, 1.0], "wd": [0.1, 1.0]},
        ValueError,
        r"^lr \* wd must be < 1 here, got 1 \(lr=1, wd=1\)",
    ),
    ({"lr": 3.0, "wd": 0.5, "optimizer": theory.SGD(momentum=0.9)}, ValueError, r"^lr \* wd must be < 1 here, got 1.5"),
    (
        {"model": "ratio"},
        TypeError,
        r"^model must be a .*RayleighQuotient or PeriodModel, got str",
    ),
    ({"model": Ratio2D}, TypeError, r"^model must be a .*got type"),
    ({"relaxations": 3.9}, ValueError, r"^relaxations must be a finite number >= 4, got 3.9"),
    ({"relaxations": "long"}, TypeError, r"^relaxations must be "),
    ({"seed": -1}, ValueError, r"^seed must be a whole number >= 0"),
    ({"seed": 1.0}, TypeError, r"^seed must be a whole number"),
    ({"rise": 0.0}, ValueError, r"^rise must be a finite number > 0, got 0.0"),
    ({"optimizer": theory.AdamW(dim=2)}, ValueError, r"^optimizer must be a theory.SGD, got AdamW"),
    ({"optimizer": "Sgd"}, ValueError, r"^optimizer must be .*SGD.*got .Sgd"),
    ({"effective_lr": 0.0}, ValueError, r"^effective_lr must be a finite number > 0, got 0.0"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message[:45] for _, _, message in BAD])
def test_bad_values_are_named_before_any_run_is_made(monkeypatch, arguments, error, message):
    def run(*_, **__):
        raise AssertionError("a run was made")

    monkeypatch.setattr("simulate.landscapes._kernels.iterate_descent", run)
    with pytest.raises(error, match=message):
        phase_diagram(**{**GOOD, **arguments})


@pytest.mark.parametrize("intrinsic_lr", [0.3, 0.6, 0.99, 0.999])
def test_the_shortest_runs_have_a_verdict(intrinsic_lr):
    assert phase_diagram(1.0, intrinsic_lr, model=Ratio2D(), relaxations=4).verdict.item() in VERDICTS


def test_diagram_of_a_network():
    model = simulate.PeriodModel.reference()
    diagram = simulate.phase_diagram([0.25, 0.5], [0.004, 0.02], model=model, relaxations=200)
    assert (diagram.verdict == "periodic").all()
    for lr, wd in ((0.25, 0.004), (0.5, 0.004), (0.5, 0.02)):
        cell = diagram.sel(lr=lr, wd=wd)
        predicted = simulated_periods(model, lr, wd, periods=1000)
        assert abs(cell.period.item() - predicted.mean) < 4 * cell.period_stderr.item()
        assert cell.norm_min.item() < predicted.trough_norm < predicted.peak_norm < cell.norm_max.item()
    with pytest.warns(UserWarning, match="1 of 2 cells are outside the range"):
        simulate.phase_diagram(0.5, [0.02, 0.04], model=model, relaxations=10)
    with pytest.raises(ValueError, match=r"optimizer must be theory\.SGD\(\)"):
        simulate.phase_diagram(0.5, 0.02, model=model, optimizer=theory.SGD(momentum=0.9))
