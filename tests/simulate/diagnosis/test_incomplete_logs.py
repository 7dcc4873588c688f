"""Incomplete and irregular logs: what is missing is named, and the cause is unknown without evidence."""

import math

import numpy as np
import pytest
import xarray as xr

import simulate
import theory
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.rules import (
    BAD_BATCH,
    DATA_ORDER,
    LARGE_UPDATE,
    LR_STEP,
    NORM_DRIVEN,
    OVERFLOW,
    THRESHOLDS,
    UNKNOWN,
)
from tests.simulate.diagnosis.logs import (
    LR,
    WD,
    as_training,
    at_equilibrium,
    lr_schedule,
    noise,
    periodic,
    with_columns,
    with_losses,
)


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        ("lacking", "word"),
        [
            (["norm", "grad_norm", "rotation", "effective_lr"], "norm of the scale-invariant weights"),
            (["lr"], "learning rate"),
            (["wd"], "weight decay"),
        ],
    )
    def test_it_is_named_and_causes_are_unknown(self, lacking, word):
        for run in (periodic()[0], with_losses(at_equilibrium(), 500, [3.0, 0.2])):
            kept = {key: value for key, value in run.attrs.items() if key not in lacking}
            found = simulate.diagnose(run.drop_vars(lacking, errors="ignore").drop_attrs().assign_attrs(kept))
            assert {spike.cause for spike in found.spikes} == {UNKNOWN}
            assert any(word in text for text in found.missing)
            assert word in str(found)
            # and the option that supplies it
            option = {"lr": "(lr=, or --lr)", "wd": "(wd=, or --wd)"}.get(lacking[0], "--column norm=")
            assert option in str(found)

    def test_the_norm_alone_gives_the_rotation(self):
        run, _ = periodic()
        bare = run[["loss", "norm"]].assign_attrs(run.attrs)
        assert simulate.diagnose(bare).cause == NORM_DRIVEN
        assert simulate.diagnose(with_losses(at_equilibrium(), 500, [3.0, 0.2])[["loss", "norm"]]).cause == BAD_BATCH

    def test_sparse_rows_show_no_bad_batch(self):
        run = with_losses(at_equilibrium(8000), 5000, [3.0] * 10).isel(step=slice(None, None, 10))
        found = simulate.diagnose(run)
        assert [spike.cause for spike in found.spikes] == [UNKNOWN]
        assert "rows lie 10 steps apart" in str(found)

    def test_the_decay_of_adam_is_not_known(self):
        run, _ = periodic()
        found = simulate.diagnose(run, optimizer=theory.Adam(dim=10))
        assert {spike.cause for spike in found.spikes} == {UNKNOWN}
        assert "Adam" in str(found)
        unknown_rule = simulate.diagnose(run.assign_attrs(optimizer="RMSprop"))
        assert {spike.cause for spike in unknown_rule.spikes} == {UNKNOWN}
        assert "optimizer whose one-step law" in str(unknown_rule)
        assert "(optimizer=, or --optimizer)" in str(unknown_rule)

    def test_assuming_plain_sgd_is_reported(self):
        run = with_losses(at_equilibrium(), 500, [3.0, 0.2])
        bare = run.drop_attrs().assign_attrs(lr=LR, wd=WD)
        remark = "plain SGD is assumed"
        assert remark in str(simulate.diagnose(bare))
        assert any(remark in text for text in simulate.diagnose(bare).to_dict()["remarks"])
        assert remark not in str(simulate.diagnose(bare, optimizer=theory.SGD()))
        # the diagnosis does not use it
        assert simulate.diagnose({"loss": np.full(400, 0.1)}).remarks == ()

    @pytest.mark.parametrize(
        ("log", "limit"),
        [
            ({"loss": noise(400, 0), "step": np.arange(400) * 100}, "every step: rows lie 100 steps apart"),
            ({"loss": noise(5, 0)}, f"enough rows: it has 5; a spike needs {THRESHOLDS.least_rows} earlier rows"),
            (
                {"loss": noise(THRESHOLDS.compared_rows - 1, 0)},
                f"enough rows: it has {THRESHOLDS.compared_rows - 1}; a spike needs",
            ),
            (
                {"loss": np.where(np.arange(400) == 5, np.nan, noise(400, 0)), "weight_norm": np.ones(400)},
                "a loss in 1 of 400 rows",
            ),
            ({"loss": noise(400, 0), "step": [*range(300), *range(303, 403)]}, "3 of 403 steps"),
            (
                {"loss": noise(400, 0), "weight_norm": np.where(np.arange(400) < 300, 1.0, np.nan)},
                "norms after step 299, so",
            ),
        ],
        ids=["sparse", "five", "few", "no loss", "holes", "norms end"],
    )
    def test_limits_are_reported_without_spikes_too(self, log, limit):
        found = simulate.diagnose(log)
        assert found.cause == "no spikes"
        (missing,) = found.to_dict()["missing"]
        assert missing.startswith(limit)
        assert f"But the log lacks {missing}." in str(found)

    def test_a_complete_log_has_no_limits(self):
        for found in (
            simulate.diagnose({"loss": noise(THRESHOLDS.compared_rows, 0)}),
            simulate.diagnose(periodic()[0]),
        ):
            assert found.missing == ()
            assert "lacks" not in str(found)

    def test_too_few_rows_have_no_spikes(self):
        for count in (*range(1, 6), *range(45, THRESHOLDS.least_rows + 2)):
            loss = noise(count, 0)
            loss[-1] = 1e6
            found = simulate.diagnose({"loss": loss})
            assert found.spikes == ()
            assert f"it has {count}" in found.missing[0]

    def test_norms_at_some_rows(self):
        run, _ = periodic(decay_steps=300)
        norm = np.where(np.arange(run.sizes["step"]) % 2 == 0, run.norm.values, math.nan)
        found = simulate.diagnose(with_columns(run, norm=norm))
        assert found.log.sizes["step"] == (run.sizes["step"] + 1) // 2
        assert set(found.missing) <= {"every step: rows lie 2 steps apart"}

    def test_a_loss_at_some_rows_is_no_overflow(self):
        run = at_equilibrium()
        loss = np.where(np.arange(800) % 10 == 0, run.loss.values, math.nan)
        assert simulate.diagnose(with_columns(run, loss=loss)).spikes == ()


class TestLogsOfLanguageModels:
    """A loss far above 0, a large loss at the start, and no norm of the weights."""

    @staticmethod
    def log(size=2.0, **columns):
        random, step = np.random.default_rng(3), np.arange(6000)
        loss = 3.2 + 7.5 * np.exp(-step / 400) + 0.04 * random.normal(size=6000)
        gradient = 0.32 + 3 * np.exp(-step / 300) + 0.02 * np.abs(random.normal(size=6000))
        shape = np.exp(-(((np.arange(40) - 12) / 9) ** 2))
        loss[4000:4040] += size * shape
        gradient[3997:4037] += 1.5 * size * shape
        return {"loss": loss, "lr": 6e-4 * np.minimum(1, (step + 1) / 700), "grad_norm": gradient, **columns}

    def test_the_whole_spike_is_found(self):
        (spike,) = simulate.diagnose(self.log(), wd=0.1, optimizer="AdamW").spikes
        assert 3995 <= spike.step <= 4005
        assert spike.last_step >= 4012
        assert spike.cause == UNKNOWN
        assert "The gradient norm rose before the loss, to" in str(spike)
        assert "so the norm may be the cause" in str(spike)

    @pytest.mark.parametrize(
        ("wd", "words"),
        [
            (0.1, "so the norm may be the cause"),
            (0.05, "19 of 20 norm-driven spikes had more"),
            (0.02, "not the cause"),
        ],
    )
    def test_less_decay_makes_the_norm_less_likely(self, wd, words):
        (spike,) = simulate.diagnose(self.log(), wd=wd, optimizer="AdamW").spikes
        assert words in str(spike)

    def test_a_small_spike_counts_beside_the_large_loss_at_the_start(self):
        assert [3995 <= s.step <= 4010 for s in simulate.diagnose(self.log(0.5)).spikes] == [True]

    def test_without_decay_the_norm_is_excluded_and_the_step_is_the_cause(self):
        (spike,) = simulate.diagnose(self.log(), wd=0.0, optimizer="AdamW").spikes
        assert spike.cause == LARGE_UPDATE
        assert "β₂" in spike.advice
        # decay is not known under an optimizer that is assumed, nor before the log begins
        assert simulate.diagnose(self.log(), wd=0.0).spikes[0].cause == UNKNOWN
        late = self.log(step=np.arange(6000) + 5000)
        assert simulate.diagnose(late, wd=0.0, optimizer="AdamW").spikes[0].cause == UNKNOWN

    def test_columns_and_lines_for_the_next_time_are_printed(self):
        found = simulate.diagnose(self.log(params_norm=np.full(6000, 238.0)))
        text = str(found)
        assert text.startswith(found.description)
        assert "loss from 'loss', lr from 'lr', gradient norm from 'grad_norm', norm of all weights from" in text
        assert "no weight norm" in text
        assert "monitor = empirical.Monitor(model, optimizer, inputs)" in text
        assert found.to_dict()["description"] == found.description
        named = simulate.diagnose(self.log(norm=np.ones(6000)))
        assert "norm" in named.log
        alone = {"loss": self.log()["loss"], "norm": self.log()["grad_norm"]}
        assert "may be the norm of the weights or that of the gradient" in str(simulate.diagnose(alone))

    @pytest.mark.parametrize("digits", [1, 6])
    def test_only_a_limit_of_the_gradient_is_clipping(self, digits):
        gradient = np.minimum(np.random.default_rng(0).uniform(0.95, 1.5, 800), 1.0)
        rounded = np.round(gradient, digits)
        cap = Rows.of(simulate.read_log({"loss": noise(800, 0), "grad_norm": rounded})).gradient_cap
        assert cap == (1.0 if digits == 6 else math.inf)
        free = np.random.default_rng(0).uniform(0.5, 1.5, 800)
        assert Rows.of(simulate.read_log({"loss": noise(800, 0), "grad_norm": free})).gradient_cap == math.inf

    def test_the_start_of_a_training_does_not_hide_a_spike(self):
        loss = 0.03 + 1.4 * np.exp(-np.arange(260) / 2) + 0.003 * np.random.default_rng(0).normal(size=260)
        loss[190] = 2.0
        assert [s.step for s in simulate.diagnose({"loss": loss}).spikes] == [190]

    @pytest.mark.parametrize("every", [100, 400])
    def test_spikes_in_the_same_batch_of_every_epoch(self, every):
        loss = noise(2000, 0)
        loss[170::every] = 3.0
        columns = {"loss": loss, "epoch": np.arange(2000) // every, "step": np.arange(2000)}
        found = simulate.diagnose(columns)
        assert found.cause == DATA_ORDER
        assert f"of the epoch of {every} steps" in str(found)
        loss = noise(2000, 0)
        for epoch in range(2000 // every):
            loss[every * epoch + np.random.default_rng(epoch).integers(every)] = 3.0
        assert DATA_ORDER not in str(simulate.diagnose(columns | {"loss": loss}))


class TestIrregularLogs:
    @pytest.mark.parametrize("missing", [[0], [5], list(range(60)), [150, 151]])
    def test_some_missing_norms(self, missing):
        run, length = periodic(3)
        norm = run.norm.values.copy()
        norm[missing] = math.nan
        whole, found = simulate.diagnose(run), simulate.diagnose(with_columns(run, norm=norm))
        assert [s.step for s in found.spikes if s.step > length] == [s.step for s in whole.spikes if s.step > length]
        assert found.spikes[-1].cause == NORM_DRIVEN
        norm[missing] = 0.0
        assert simulate.diagnose(with_columns(run, norm=norm)).spikes[-1].cause == NORM_DRIVEN

    def test_a_bad_batch_in_every_epoch(self):
        run = at_equilibrium(1200)
        loss = run.loss.values.copy()
        loss[400:1200:100] = 3.0
        found = simulate.diagnose(with_columns(run, loss=loss))
        assert [(s.step, s.cause) for s in found.spikes[:-1]] == [(step, BAD_BATCH) for step in range(400, 1100, 100)]

    def test_warm_up_is_no_spike(self):
        step = np.arange(800)
        for seed in range(10):
            fading = np.exp(0.1 * np.random.default_rng(seed).normal(size=800))
            loss = (2.3 * np.exp(-step / 150) + 0.1) * fading
            for lr in (np.minimum(step / 100, 1) * 0.5, np.zeros(800)):
                assert simulate.diagnose({"loss": loss, "lr": lr}, wd=1e-4).spikes == ()

    def test_a_missing_loss_is_no_overflow(self):
        loss = at_equilibrium().loss.values.copy()
        loss[::10] = math.nan
        assert simulate.diagnose({"loss": loss}).spikes == ()
        loss[700:] = math.nan
        assert [(s.step, s.cause) for s in simulate.diagnose({"loss": loss}).spikes] == [(700, OVERFLOW)]

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_replaced_weights_are_no_bad_data(self, factor):
        run = at_equilibrium()
        norm = run.norm.values.copy()
        # afterwards the norm obeys the one-step law
        later = simulate.RecordedGradient(run.grad_norm.values[500:])
        norm[500:] = simulate.norm_map(LR, WD, later, norm=factor * norm[500], steps=300).norm
        found = simulate.diagnose(
            with_columns(with_losses(run, 500, [3.0, 0.4, 0.2]), norm=norm).drop_vars("effective_lr")
        )
        assert {s.cause for s in found.spikes} == {UNKNOWN}
        assert any("weights were reset" in " ".join(s.evidence) for s in found.spikes)

    def test_clipping_is_advised_where_the_gradient_was_large(self):
        run = at_equilibrium()
        usual = simulate.diagnose(with_losses(run, 500, [3.0, 0.2])).spikes[0]
        assert "Clipping" not in usual.advice
        gradients = run.grad_norm.values.copy()
        gradients[500] *= 8
        # the norm obeys the one-step law
        again = simulate.norm_map(LR, WD, simulate.RecordedGradient(gradients), norm=float(run.norm[0]), steps=800)
        hard = with_losses(as_training(again).assign(loss=run.loss), 500, [3.0, 0.2])
        large = simulate.diagnose(hard).spikes[0]
        assert large.cause == BAD_BATCH
        assert "Clipping" in large.advice
        assert "of the scale-invariant weights" in large.advice
        # the advice names the clipped column
        columns = {
            "loss": hard.loss.values,
            "norm": hard.norm.values,
            "total/grad": (hard.grad_norm / hard.norm).values,
        }
        named = simulate.diagnose(columns, lr=LR, wd=WD, names={"gradient": "total/grad"}).spikes[0]
        assert named.advice == large.advice.replace("of the scale-invariant weights", "in column 'total/grad'")

    def test_an_overdue_spike_is_not_expected(self):
        run, _ = periodic(5)
        steady = simulate.norm_map(LR, WD, 0.5, norm=float(run.final_norm), steps=3000)
        parts = {name: np.append(run[name], steady[name]) for name in ("norm", "grad_norm", "rotation")}
        log = {**parts, "loss": np.append(run.loss, noise(3000, 7)), "lr": LR}
        assert math.isnan(simulate.diagnose(log, wd=WD).next_step)

    def test_a_ramp_of_the_learning_rate(self):
        # a tenth of the way at a time
        lr = np.interp(np.arange(900), [0, 500, 520, 900], [0.05, 0.05, 1.0, 1.0])
        run = simulate.norm_map(
            lr_schedule(lr), 0.02, simulate.RecordedGradient(noise(900, 3, 2.0)), norm=3.0, steps=900
        )
        loss = noise(900, 4) + 3 * np.append(0, run.rotation.values[:-1]) ** 2 * (np.arange(900) > 500)
        found = simulate.diagnose(run.assign(loss=("step", loss)))
        assert found.spikes[0].cause == LR_STEP
        assert "in the 30 steps before" in " ".join(found.spikes[0].evidence)

    def test_a_high_loss_at_the_start_hides_no_spike(self):
        run = with_losses(at_equilibrium(), 500, [3.0, 0.2])
        loss = run.loss.values.copy()
        loss[0] = 100.0
        assert [s.cause for s in simulate.diagnose(with_columns(run, loss=loss)).spikes] == [BAD_BATCH]

    def test_a_data_frame_says_the_same(self):
        run, _ = periodic(4)
        frame = run[["loss", "norm", "grad_norm", "rotation"]].to_dataframe()
        found = simulate.diagnose(frame, lr=LR, wd=WD)
        assert [(s.step, s.cause) for s in found.spikes] == [(s.step, s.cause) for s in simulate.diagnose(run).spikes]


@pytest.mark.parametrize(
    ("log", "error", "message"),
    [
        ({"weight_norm": [1.0]}, ValueError, r"loss of each step, got \['norm'\]"),
        ({"loss": [math.nan] * 3}, ValueError, "at least one finite loss"),
        ("no such file", ValueError, "no such file"),
        (3, TypeError, "source must be a path"),
        (xr.Dataset({"loss": (("lr", "step"), np.ones((2, 3)))}), ValueError, "one run with dimension"),
        (
            at_equilibrium(60).assign_coords(step=np.arange(60) % 20),
            ValueError,
            r"log\.step must be whole numbers that grow",
        ),
        (
            at_equilibrium(60).assign_coords(step=np.arange(60) / 2),
            ValueError,
            r"log\.step must be whole numbers that grow",
        ),
        (
            at_equilibrium(60).assign_attrs(constraint="fixed norm"),
            ValueError,
            "log must come from a run without a constraint, got 'fixed norm'",
        ),
    ],
)
def test_bad_logs_are_named(log, error, message):
    with pytest.raises(error, match=message):
        simulate.diagnose(log)


def test_names_are_not_for_trajectories(tmp_path):
    run = at_equilibrium(60)
    simulate.save(run, tmp_path / "run.zarr")
    for log in (run, tmp_path / "run.zarr"):
        with pytest.raises(ValueError, match=r"names must be.*a trajectory.*'loss': 'nope'"):
            simulate.diagnose(log, names={"loss": "nope"})
        assert simulate.diagnose(log, names={}).spikes == ()
