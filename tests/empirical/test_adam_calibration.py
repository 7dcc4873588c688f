import concurrent.futures
import dataclasses

import theory
from empirical import RunConfig, calibrate, train
from empirical.reports.comparison import examine


def test_a_probe_of_adamw_predicts_whatever_dim_was_written(tmp_path):
    rates = {"lr": 0.01, "intrinsic_lr": 0.01, "ratio": 2, "reach": 3}
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        model = calibrate("mlp", periods=10, seeds=1, width=4, executor=here, optimizer=theory.AdamW(dim=1), **rates)
    assert model.optimizer == "AdamW(dim=272)"
    # one that was made when trajectories were named by the `dim` that was given
    before = dataclasses.replace(model, optimizer="AdamW(dim=1)")
    for dim in (1, 5):
        run = train(RunConfig(lr=0.01, wd=0.7, width=4, steps=800, seed=9, optimizer=theory.AdamW(dim=dim)))
        for known in (model, before):
            found = examine(run, known)
            assert found.expected, found.notes
            assert "the probe is of" not in " ".join(found.notes)
            part = run.assign_attrs(config=model.calibration_runs[0].run)
            assert "part of the probe" in " ".join(examine(part, known).notes)
    other = train(RunConfig(lr=0.01, wd=0.7, width=4, steps=800, optimizer=theory.AdamW(dim=1, betas=(0.5, 0.9))))
    assert "the probe is of AdamW" in " ".join(examine(other, model).notes)
