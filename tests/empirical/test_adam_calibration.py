"""A period model of AdamW, whose number of weights is measured and not taken from the user."""

import concurrent.futures
import dataclasses

import theory
from empirical import RunConfig, calibrate, train
from empirical.reports.comparison import compare_run


def notes(run, period_model):
    comparison = compare_run(run, period_model)
    assert comparison.prediction, comparison.notes
    return " ".join(comparison.notes)


def test_calibration_runs_of_adamw_apply_to_any_dim():
    settings = {"lr": 0.01, "intrinsic_lr": 0.04, "ratio": 2, "reach": 3, "periods": 10, "seeds": 1, "width": 4}
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        model = calibrate("mlp", executor=here, optimizer=theory.AdamW(dim=1), **settings)
    assert model.optimizer == theory.AdamW(dim=272)
    run = RunConfig(lr=0.01, wd=2.8, width=4, steps=300, seed=9, optimizer=theory.AdamW(dim=5))
    trained = train(run)
    assert "was calibrated with" not in notes(trained, model)
    # older versions stored the `dim` that the user passed
    older = dataclasses.replace(model, optimizer=theory.AdamW(dim=1))
    part = trained.assign_attrs(config=model.calibration_runs[0].run)
    assert "was calibrated with" not in (of_part := notes(part, older))
    assert "one of the calibration runs" in of_part
    other = train(dataclasses.replace(run, optimizer=theory.AdamW(dim=1, betas=(0.5, 0.9))))
    assert "was calibrated with AdamW" in " ".join(compare_run(other, model).notes)
