import concurrent.futures
import dataclasses

import theory
from empirical import RunConfig, calibrate, train
from empirical.reports.comparison import compare_run


def test_calibration_runs_of_adamw_apply_to_any_dim(tmp_path):
    intrinsic_lrs = {"lr": 0.01, "intrinsic_lr": 0.01, "ratio": 2, "reach": 3}
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        model = calibrate(
            "mlp", periods=10, seeds=1, width=4, executor=here, optimizer=theory.AdamW(dim=1), **intrinsic_lrs
        )
    assert model.optimizer == theory.AdamW(dim=272)
    # older versions stored the `dim` that the user passed
    older = dataclasses.replace(model, optimizer="AdamW(dim=1)")
    for dim in (1, 5):
        run = train(RunConfig(lr=0.01, wd=0.7, width=4, steps=800, seed=9, optimizer=theory.AdamW(dim=dim)))
        for period_model in (model, older):
            comparison = compare_run(run, period_model)
            assert comparison.prediction, comparison.notes
            assert "was calibrated with" not in " ".join(comparison.notes)
            part = run.assign_attrs(config=model.calibration_runs[0].run)
            assert "one of the calibration runs" in " ".join(compare_run(part, period_model).notes)
    other = train(RunConfig(lr=0.01, wd=0.7, width=4, steps=800, optimizer=theory.AdamW(dim=1, betas=(0.5, 0.9))))
    assert "was calibrated with AdamW" in " ".join(compare_run(other, model).notes)
