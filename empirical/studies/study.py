"""A study: a claim, the runs that test it, a statistic of these runs, and the rule that decides. All are fixed before.

`validation`, `claims`, `held_out` and `diagnosis` are lists of studies. Here they are run, judged and written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

import simulate
import theory
from empirical.config import RunConfig
from empirical.presets import at_paper_scale
from empirical.reports.tables import DASH, Cell, Table, number_cell
from empirical.sweeps.store import read_summaries
from empirical.sweeps.sweep import AnyExecutor, sweep
from empirical.sweeps.task import FAILED, Summary, run_path
from simulate._files import DamagedFileError, atomic_write, read_json, write_json
from simulate.trajectories.contract import COMPLETE, versions
from theory.arguments import check_path

HOLDS, FAILS, UNDECIDED, NO_GOAL = "holds", "fails", "undecided", DASH
RUNS_SUBFOLDER, NETWORKS_SUBFOLDER = "runs", "networks"
SEEDS_MIN = 3
_CONFIDENCE = 0.95
_LOADED_RUNS = 40  # trajectories kept in memory, since studies share runs

_Array = npt.NDArray[np.float64]
# Runs by group, one per seed. Statistics of two groups pair their runs in this order.
RunGroups = Mapping[str, Sequence[RunConfig]]
Trajectories = Mapping[str, Sequence[xr.Dataset]]


class Judgement(NamedTuple):
    """Verdict of a rule, with the statistic that it judged and its standard error."""

    verdict: str
    statistic: float
    error: float = math.nan


class Rule(Protocol):
    """Decides from the values of the seeds. Its text is the condition."""

    def judge(self, values: npt.ArrayLike) -> Judgement:
        """Return the verdict on the values of the seeds."""


@dataclass(frozen=True, kw_only=True)
class Between:
    """The mean over all seeds lies between two limits.

    It holds if the 95 % interval of the mean lies between the limits. It fails if the interval lies outside.

    Examples
    --------
    >>> rule = Between(high=0.15, low=-0.15)
    >>> str(rule), rule.judge([0.01, 0.02, -0.01]).verdict, rule.judge([0.3, 0.31, 0.32]).verdict
    ('-0.15 < mean < 0.15', 'holds', 'fails')
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, got {self.low} and {self.high}")

    def __str__(self) -> str:
        left = "" if math.isinf(self.low) else f"{self.low:g} < "
        right = "" if math.isinf(self.high) else f" < {self.high:g}"
        return f"{left}mean{right}"

    def judge(self, values: npt.ArrayLike) -> Judgement:
        """Return the verdict on at least three seeds."""
        numbers = _seed_values(values)
        mean, error = float(numbers.mean()), float(numbers.std(ddof=1) / math.sqrt(numbers.size))
        # imported here because it takes half a second
        from scipy.stats import t

        half_width = float(t.ppf((1 + _CONFIDENCE) / 2, numbers.size - 1)) * error
        if mean - half_width > self.low and mean + half_width < self.high:
            verdict = HOLDS
        elif mean + half_width <= self.low or mean - half_width >= self.high:
            verdict = FAILS
        else:
            verdict = UNDECIDED
        return Judgement(verdict, mean, error)


@dataclass(frozen=True, kw_only=True)
class EverySeed:
    """The indicator, 1 for yes and 0 for no, is 1 for every seed.

    It holds if every seed gives 1. It fails if at most one seed does. NaN, from a run too short to classify, leaves it
    undecided. Five seeds that are 0 or 1 by chance are all 1 in 3 % of cases.

    Examples
    --------
    >>> rule = EverySeed()
    >>> [rule.judge(values).verdict for values in ([1] * 5, [1, 1, 1, 1, 0], [0, 0, 0, 0, 1])]
    ['holds', 'undecided', 'fails']
    """

    seeds: int = 5

    def __str__(self) -> str:
        return f"yes for each of {self.seeds} seeds"

    def judge(self, values: npt.ArrayLike) -> Judgement:
        """Return the verdict on at least three seeds; undecided for fewer than `seeds`."""
        indicators = _seed_values(values)
        if not np.isin(indicators[~np.isnan(indicators)], (0, 1)).all():
            raise ValueError(f"values must be 0, 1 or NaN, got {indicators.tolist()}")
        if np.isnan(indicators).any():
            return Judgement(UNDECIDED, math.nan)
        ones, share = int(indicators.sum()), float(indicators.mean())
        enough = indicators.size >= self.seeds
        verdict = HOLDS if ones == indicators.size and enough else FAILS if ones <= 1 and enough else UNDECIDED
        return Judgement(verdict, share, math.sqrt(share * (1 - share) / indicators.size))


def _seed_values(values: npt.ArrayLike) -> _Array:
    numbers = np.asarray(values, dtype=float).reshape(-1)
    if numbers.size < SEEDS_MIN:
        raise ValueError(f"values must be from at least {SEEDS_MIN} seeds, got {numbers.size}")
    # a loss that overflowed has no finite mean
    return np.where(np.isfinite(numbers), numbers, math.nan)


_SUMMARIES: Mapping[str, Callable[[_Array], Any]] = {"mean": np.mean, "median": np.median, "largest": np.max}


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A summary of the values is at most or at least a limit. Without a limit it is only reported.

    Attributes
    ----------
    at_most, at_least : the limits. For yes or no, 1 or 0, the mean is a share.
    summary : "mean", "median" or "largest".
    name, form : what the text calls the summary, and its format of a limit.

    Examples
    --------
    >>> rule = Limit(at_most=0.08, summary="largest", form=".0%")
    >>> str(rule), rule.judge([0.01, 0.09]).verdict, Limit(at_least=0.8).judge([1, 1, 1, 1, 0]).verdict
    ('≤ 8%', 'fails', 'holds')
    """

    at_most: float | None = None
    at_least: float | None = None
    summary: str = "mean"
    name: str = ""
    form: str = "g"

    @property
    def has_goal(self) -> bool:
        """Whether there is a limit."""
        return not (self.at_most is None and self.at_least is None)

    def __str__(self) -> str:
        limits = (("≤", self.at_most), ("≥", self.at_least))
        texts = [f"{self.name} {symbol} {limit:{self.form}}".strip() for symbol, limit in limits if limit is not None]
        return " and ".join(texts) or NO_GOAL

    def judge(self, values: npt.ArrayLike) -> Judgement:
        """Return the verdict on any number of values; undecided if one is NaN."""
        numbers = np.asarray(values, dtype=float).reshape(-1)
        statistic = float(_SUMMARIES[self.summary](numbers)) if numbers.size else math.nan
        if not self.has_goal:
            return Judgement(NO_GOAL, statistic)
        if math.isnan(statistic):
            return Judgement(UNDECIDED, statistic)
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return Judgement(HOLDS if low <= statistic <= high else FAILS, statistic)


NO_RULE = Limit()


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Values that a rule judges, and the numbers that a table shows beside them. NaN does not apply.

    Attributes
    ----------
    values : one number per seed or setting.
    predicted, simulated, measured : value from `theory`, from `simulate` and from training.
    difference, error : difference of measured and predicted, and its standard error.
    note : what the claim adds in brackets, such as a number of periods.
    """

    values: Sequence[float]
    predicted: float = math.nan
    simulated: float = math.nan
    measured: float = math.nan
    difference: float = math.nan
    error: float = math.nan
    note: str = ""


# Returns one number per seed, or `Numbers`, from the data of a study: trajectories by group for stored runs.
Statistic = Callable[[Any], Sequence[float] | Numbers]


@dataclass(frozen=True, kw_only=True)
class Control:
    """Runs, or another statistic of the same runs, for which the rule of a study must not hold."""

    name: str
    runs: RunGroups | None = None
    statistic: Statistic | None = None


def statistic_with_error(result: Result) -> str:
    """Statistic and its standard error as text."""
    return f"{result.statistic:.3g} ± {result.error:.2g}"


def share_with_count(result: Result) -> str:
    """Share of the values that are 1, with their number, as text; a dash without a finite value."""
    if not np.isfinite(result.values).all():
        return DASH
    return f"{result.statistic:.0%} ({int(result.values.sum())} of {result.values.size})"


@dataclass(frozen=True, kw_only=True)
class Study:
    """One claim, how it is tested, and controls that must not pass the test.

    Attributes
    ----------
    name : a few words with hyphens.
    claim : one sentence, or a phrase for a row of a table.
    source : publication that makes the claim.
    runs : runs to train, by group; empty for data that are made in another way.
    statistic : returns the values that the rule judges.
    statistic_name : what they are, with their unit.
    rule, reason : rule that decides, and the reason for its threshold.
    controls : runs or statistics for which the rule must not hold.
    form : text of the statistic of a result.
    scale : what the claim would need to hold, where it does not hold at this scale.
    fast : whether the study is part of the fast subset.
    drawn_group : group of the control whose first run is drawn, next to the first run of each group of the claim.
    drawn_variable : variable of a trajectory to draw, or `statistics.PLAIN_GRADIENT`.
    """

    name: str
    claim: str
    statistic: Statistic
    rule: Rule = NO_RULE
    source: str = ""
    runs: RunGroups = dataclasses.field(default_factory=dict)
    statistic_name: str = ""
    reason: str = ""
    controls: tuple[Control, ...] = ()
    form: Callable[[Result], str] = statistic_with_error
    scale: str = ""
    fast: bool = False
    drawn_group: str = "all"
    drawn_variable: str = "norm"

    @property
    def control_studies(self) -> tuple[Study, ...]:
        """The same rule for each control."""
        return tuple(
            dataclasses.replace(
                self,
                claim=control.name,
                runs=self.runs if control.runs is None else control.runs,
                statistic=control.statistic or self.statistic,
                controls=(),
            )
            for control in self.controls
        )

    @property
    def all_runs(self) -> list[RunConfig]:
        """Runs of the study and its controls."""
        return [run for study in (self, *self.control_studies) for group in study.runs.values() for run in group]

    def at_paper_scale(self, scale: Callable[[RunConfig], RunConfig] = at_paper_scale) -> Study:
        """Return the same claim, statistic and rule with all runs at the scale of the paper, for a GPU."""

        def scale_groups(groups: RunGroups) -> RunGroups:
            return {name: [scale(run) for run in group] for name, group in groups.items()}

        controls = [
            dataclasses.replace(control, runs=None if control.runs is None else scale_groups(control.runs))
            for control in self.controls
        ]
        return dataclasses.replace(self, runs=scale_groups(self.runs), controls=tuple(controls))

    def judge(self, data: Any, controls: Sequence[Any] = ()) -> Result:
        """Apply the rule to the statistic of the data, such as trajectories by group, and to that of each control."""
        numbers = self.statistic(data)
        numbers = numbers if isinstance(numbers, Numbers) else Numbers(values=numbers)
        judgement = self.rule.judge(numbers.values)
        control_results = [study.judge(control) for study, control in zip(self.control_studies, controls, strict=True)]
        return Result(
            study=self,
            verdict=judgement.verdict,
            statistic=judgement.statistic,
            error=judgement.error if math.isnan(numbers.error) else numbers.error,
            numbers=numbers,
            controls=tuple(control_results),
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a study: its verdict, its statistic with standard error, and the results of its controls.

    Attributes
    ----------
    study : the study.
    verdict : "holds", "fails", "undecided", or "–" without a goal.
    statistic, error : what the rule judged, and its standard error; NaN if unknown.
    numbers : values by seed, and further numbers of a comparison.
    controls : results of the controls, whose verdict must not be "holds".
    is_control_row : whether the verdict is that of a control: it holds if the rule fails.
    """

    study: Study
    verdict: str
    statistic: float
    error: float
    numbers: Numbers
    controls: tuple[Result, ...] = ()
    is_control_row: bool = False

    def __str__(self) -> str:
        return f"{statistic_with_error(self)} (n = {self.values.size}): {self.verdict}"

    @property
    def values(self) -> _Array:
        """Values by seed."""
        return np.asarray(self.numbers.values, dtype=np.float64).reshape(-1)

    @property
    def claim(self) -> str:
        """Claim with its note, as in a table."""
        note = f" ({self.numbers.note})" if self.numbers.note else ""
        return f"{'control, ' if self.is_control_row else ''}{self.study.claim}{note}"

    @property
    def rule(self) -> str:
        """Rule as in a table."""
        return f"{'not: ' if self.is_control_row else ''}{self.study.rule}"

    @property
    def rows(self) -> list[Result]:
        """The result, and each control as a row that holds if the rule fails for it."""
        opposite = {HOLDS: FAILS, FAILS: HOLDS}
        return [
            self,
            *(
                dataclasses.replace(
                    control, is_control_row=True, verdict=opposite.get(control.verdict, control.verdict)
                )
                for control in self.controls
            ),
        ]

    @property
    def is_missed(self) -> bool:
        """Whether a goal is not reached."""
        return self.verdict not in (HOLDS, NO_GOAL)

    @property
    def control_holds(self) -> bool:
        """Whether the rule holds for a control, so that the study is meaningless."""
        return any(control.verdict == HOLDS for control in self.controls)


def _difference_cell(result: Result) -> Cell:
    parts = [] if math.isnan(result.numbers.difference) else [f"{result.numbers.difference:+.3g}"]
    parts += [] if math.isnan(result.numbers.error) else [f"± {result.numbers.error:.2g}"]
    return Cell(" ".join(parts) or DASH, result.numbers.difference)


# columns that a table of results can have
_COLUMNS: Mapping[str, Callable[[Result], Cell | str]] = {
    "claim": lambda result: result.claim,
    "metric": lambda result: result.claim,
    "name": lambda result: result.study.name,
    "source": lambda result: result.study.source,
    "rule": lambda result: result.rule,
    "goal": lambda result: result.rule,
    "value": lambda result: result.study.form(result),
    "statistic ± error": statistic_with_error,
    "n": lambda result: Cell(str(result.values.size), result.values.size),
    "predicted": lambda result: number_cell(result.numbers.predicted),
    "simulated": lambda result: number_cell(result.numbers.simulated),
    "measured": lambda result: number_cell(result.numbers.measured),
    "difference ± error": _difference_cell,
    # the style of pages knows the class FAILS
    "verdict": lambda result: Cell(result.verdict, kind=result.verdict.replace(FAILS, "FAILS")),
    "control": lambda result: ", ".join(control.verdict for control in result.controls),
}


def results_table(results: Sequence[Result], columns: Sequence[str], **other: Callable[[Result], str]) -> Table:
    """Table with a row for each result and some of the columns above; `other` gives columns another text.

    Examples
    --------
    >>> study = Study(name="mean", claim="mean error", statistic=list, rule=Limit(at_most=0.08, form=".0%"))
    >>> print(results_table([study.judge([0.05])], ["claim", "goal", "verdict"]).text())
    claim       goal  verdict
    mean error  ≤ 8%  holds
    """
    cells = {**_COLUMNS, **other}
    return Table(columns, [[cells[column](result) for column in columns] for result in results], name="results")


def goals_table(results: Sequence[Result]) -> Table:
    """Table of metrics with their goals."""
    return results_table(results, ["metric", "value", "goal", "verdict"])


def write_page(path: Path, command: str, *parts: str) -> None:
    """Write a page in Markdown: the command that wrote it, date and versions, and parts with empty lines between."""
    installed = versions()
    head = (
        f"<!-- written by `{command}` -->\n*{datetime.date.today().isoformat()}, bnwd {installed['bnwd_version']}, "
        f"Python {installed['python_version']}, numpy {installed['numpy_version']}, torch {torch.__version__}.*"
    )
    with atomic_write(path) as aside:
        aside.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")


def prepare_folder(folder: Path, marker: str, made_by: str) -> dict[str, Any]:
    """Create a folder for results, or accept an empty one, or that of an earlier call by its marker, a JSON file.

    Return the marker of an earlier call; empty for a new folder. Raise ValueError for a folder of something else.
    """
    with folder_errors(folder):
        content: dict[str, Any] = {}
        if folder.exists() and any(folder.iterdir()):
            with contextlib.suppress(DamagedFileError):
                content = read_json(folder / marker, "out")
            if content.get("made_by") != made_by:
                raise ValueError(
                    f"out must be a new or empty folder, or that of an earlier call with an intact {marker}, "
                    f"got {str(folder)!r}"
                )
        folder.mkdir(parents=True, exist_ok=True)
        if not content:
            write_json(folder / marker, {"made_by": made_by, "version": theory.__version__})
    return content


@contextlib.contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the disk into a ValueError about the argument `out`."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {str(folder)!r} ({error.strerror})") from None


def _check_complete(configs: Sequence[RunConfig], folder: Path) -> None:
    """Raise RuntimeError that lists the runs that diverged or collapsed."""
    statuses = {str(run_path(folder, run)): load_stored_run(folder, run).status.item() for run in configs}
    if incomplete := {path: status for path, status in statuses.items() if status != COMPLETE}:
        raise RuntimeError(f"these runs are not complete, with traces in their folders: {incomplete}")


def run_studies(
    studies: Sequence[Study],
    out: str | os.PathLike[str],
    *,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
    must_complete: bool = False,
    draw: Callable[[Path, Result, Trajectories, Sequence[Trajectories]], None] | None = None,
) -> list[Result]:
    """Train the runs that are missing, each once, and judge every study.

    Parameters
    ----------
    studies : studies of stored runs.
    out : folder; its subfolder `runs` is a sweep, which an interrupted call continues.
    must_complete : raise RuntimeError for runs that diverged or collapsed; otherwise they are data.
    draw : called for each study with a path in `out`, its result, and the trajectories of runs and controls.
    """
    folder = check_path("out", out)
    runs = folder / RUNS_SUBFOLDER
    all_runs = [run for study in studies for run in study.all_runs]
    train_missing(all_runs, runs, executor, progress=progress)
    if must_complete:
        _check_complete(all_runs, runs)
    networks = str(folder / NETWORKS_SUBFOLDER)

    @functools.lru_cache(_LOADED_RUNS)
    def load(run: RunConfig) -> xr.Dataset:
        return load_stored_run(runs, run).assign_attrs(folder=networks)

    results = []
    for study in studies:
        data, *controls = (
            {name: [load(run) for run in group] for name, group in part.runs.items()}
            for part in (study, *study.control_studies)
        )
        results.append(study.judge(data, controls))
        if draw is not None:
            draw(folder / study.name, results[-1], data, controls)
    return results


def train_missing(
    runs: Iterable[RunConfig],
    folder: Path,
    executor: AnyExecutor | None = None,
    *,
    progress: bool | None = None,
    **options: Any,
) -> dict[str, Summary]:
    """Train the runs that are missing in a folder, with the options of `empirical.sweep`.

    Of runs that differ only in `steps`, only the longest is trained. Return summaries by identity of a run. Raise
    RuntimeError if a training failed.
    """
    # longer runs replace shorter ones of the same identity
    longest = {run.identity: run for run in sorted(runs, key=lambda run: run.steps)}
    if not longest:
        return {}
    sweep(sorted(longest.values(), key=_cost, reverse=True), folder, executor, progress=progress, **options)
    summaries = {identity: summary for identity, summary in read_summaries(folder).items() if identity in longest}
    for summary in summaries.values():
        if summary.status == FAILED:
            raise RuntimeError(f"a training failed: {summary.error}")
    return summaries


def _cost(run: RunConfig) -> float:
    """Approximate relative duration of a run; long runs start first."""
    pixels = 12 if run.dataset == "mnist5k" else 1
    return run.steps * (15 if run.model == "convnet" else (run.width or 64) / 64 * pixels)


def load_stored_run(folder: Path, run: RunConfig) -> xr.Dataset:
    """Open the trajectory of a run that `train_missing` stored, cut to the number of steps of this run.

    Examples
    --------
    >>> import concurrent.futures, tempfile
    >>> short, long = (RunConfig(lr=0.5, wd=0.01, width=8, steps=steps, evaluate_every=10) for steps in (20, 40))
    >>> with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(1) as executor:
    ...     summaries = train_missing([short, long], Path(folder), executor)
    ...     len(summaries), dict(load_stored_run(Path(folder), short)[["loss", "test_loss"]].sizes)
    (1, {'step': 20, 'eval_step': 3})
    """
    whole = simulate.load(run_path(folder, run))
    part = whole.isel(step=slice(0, run.steps))
    if run.steps < whole.sizes["step"]:
        part = part.assign(final_norm=whole.norm[run.steps].drop_vars(["step", "epoch"], errors="ignore"))
        part["status"], part["status_step"] = COMPLETE, run.steps
    return part.sel(eval_step=slice(0, run.steps)) if "eval_step" in part.dims else part
