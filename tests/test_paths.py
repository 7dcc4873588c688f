"""Every function that takes a path, a run or a log names the argument if it gets something else."""

import pytest

import empirical
import simulate

RUN = simulate.norm_map(0.5, 0.01, 2.0, norm=2.0, steps=50)
CONFIG = empirical.RunConfig(lr=0.5, wd=0.01, width=4, steps=5)
CALLS = {
    "load": ("path", simulate.load),
    "save": ("path", lambda value: simulate.save(RUN, value)),
    "PeriodModel.load": ("path", simulate.PeriodModel.load),
    "PeriodModel.save": ("path", lambda value: simulate.PeriodModel.reference().save(value)),
    "read_log": ("source", simulate.read_log),
    "describe_log": ("log", simulate.describe_log),
    "write_explorer_page": ("path", simulate.write_explorer_page),
    "open_sweep": ("path", empirical.open_sweep),
    "read_sweep": ("path", empirical.read_sweep),
    "resume": ("path", empirical.resume),
    "load_model": ("path", empirical.load_model),
    "report source": ("source", lambda value: empirical.write_run_report(value, "report.html")),
    "report path": ("path", lambda value: empirical.write_run_report(RUN, value)),
    "train": ("out", lambda value: empirical.train(CONFIG, value)),
    "sweep": ("out", lambda value: empirical.sweep(empirical.grid(lr=[0.1], wd=0.01), value)),
    "at_paper_scale": ("run", empirical.at_paper_scale),
}


@pytest.mark.parametrize("value", [3, object(), b"folder", []], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_path_is_refused_by_name(call, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, function = CALLS[call]
    with pytest.raises(TypeError, match=f"^{name} must be .*, got {type(value).__name__}$"):
        function(value)
    assert list(tmp_path.iterdir()) == []
