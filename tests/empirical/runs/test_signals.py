"""A signal is never lost, whenever it comes."""

import concurrent.futures
import dataclasses
import os
import signal
import threading

import pytest

import simulate
from empirical import RunConfig, sweep, train
from empirical.runs import loop
from empirical.runs.loop import Interrupted, train_runs
from empirical.runs.signals import catch_stop_signals
from empirical.sweeps.sweep import SweepInterrupted, _SweepRunner

NUMBERS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
CONFIG = RunConfig(lr=0.5, wd=0.01, width=8, steps=20)


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@NUMBERS
def test_a_context_that_ends_raises_what_came_in_it(number):
    before, seen = handlers(), []

    def work():
        with catch_stop_signals() as stop:
            os.kill(os.getpid(), number)
            seen.append(stop.is_set())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [True]
    assert handlers() == before


@NUMBERS
def test_another_exception_is_kept(number):
    before = handlers()

    def fail():
        with catch_stop_signals():
            os.kill(os.getpid(), number)
            raise OSError("disk")

    def clean_up_after_an_error():
        try:
            raise OSError("disk")
        finally:
            with catch_stop_signals():
                os.kill(os.getpid(), number)

    for work in (fail, clean_up_after_an_error):
        with pytest.raises(OSError, match="disk"):
            work()
    assert handlers() == before


def test_a_second_ctrl_c_is_not_caught():
    seen = []

    def work():
        with catch_stop_signals():
            for number in range(3):
                os.kill(os.getpid(), signal.SIGINT)
                seen.append(number)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [0]


def test_other_threads_receive_no_signals():
    before, seen = handlers(), []

    def work():
        with catch_stop_signals() as stop:
            seen.append((stop.is_set(), handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@NUMBERS
def test_in_the_last_step_of_a_run(tmp_path, monkeypatch, number):
    advance = loop.advance_replicas

    def advance_and_stop(engine, setups, states, steps, places, count):
        results = advance(engine, setups, states, steps, places, count)
        if steps[0] + count == CONFIG.steps:
            os.kill(os.getpid(), number)
        return results

    monkeypatch.setattr(loop, "advance_replicas", advance_and_stop)
    with pytest.raises(Interrupted, match=r"after 20 steps"):
        train(CONFIG, tmp_path / "run", progress=False)
    monkeypatch.undo()
    run = simulate.load(tmp_path / "run")
    assert run.status.item() == "complete"
    assert run.identical(train(CONFIG, tmp_path / "run", progress=False))


def test_a_run_without_a_folder_promises_none(monkeypatch):
    advance = loop.advance_replicas

    def advance_and_stop(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return advance(*arguments)

    monkeypatch.setattr(loop, "advance_replicas", advance_and_stop)
    with pytest.raises(Interrupted, match=r"^interrupted after \d+ steps; nothing is kept, pass out=FOLDER"):
        train(CONFIG, progress=False)


def test_no_further_group_of_runs_begins(tmp_path, monkeypatch):
    advance, calls = loop.advance_replicas, []

    def advance_and_stop(*arguments):
        calls.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return advance(*arguments)

    monkeypatch.setattr(loop, "advance_replicas", advance_and_stop)
    configs = [CONFIG, dataclasses.replace(CONFIG, width=9)]
    folders = [tmp_path / "first", tmp_path / "second"]
    outcomes = train_runs(configs, folders, [0, 0], lambda config, run: run, lambda: False)
    assert len(calls) == 1
    assert [type(outcome) for outcome in outcomes] == [Interrupted, Interrupted]
    assert [simulate.load(folder).status.item() for folder in folders] == ["interrupted"] * 2


@NUMBERS
def test_after_the_last_run_of_a_sweep(tmp_path, monkeypatch, number):
    collect = _SweepRunner._collect

    def collect_and_stop(runner):
        collect(runner)
        if not runner._submitted:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(_SweepRunner, "_collect", collect_and_stop)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        with pytest.raises(SweepInterrupted):
            sweep([CONFIG], tmp_path / "sweep", executor, progress=False)
        monkeypatch.undo()
        assert (sweep([CONFIG], tmp_path / "sweep", executor, progress=False).status == "complete").all()
