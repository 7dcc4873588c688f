"""Meaning of the columns of a log: which one is the loss, the learning rate, the norm."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from simulate.logs._column_names import (
    AMBIGUOUS_NORM,
    EVALUATION_WORDS,
    LOGGERS,
    LOSS_COMPONENTS,
    MEANINGS,
    MONITOR_NAMES,
    NAMES,
    PHASE_NAMES,
    RANK_NAMES,
    TRAINING_WORDS,
    TRAJECTORY_NAMES,
    Logger,
    fallback_meaning,
    has_meaning,
    normalize,
)
from simulate.logs._long_form import spread_metrics
from simulate.logs._table import Table, format_names
from theory.arguments import check_mapping, quote

_ALIASES = {"gradient_norm": "gradient"}
_RUN_SEPARATOR = " - "
_EXTREMES = ("__MIN", "__MAX")
_MOST_REMARKED = 3
# a column with fewer values than this share of another one of the same meaning does not count
_LEAST_SHARE = 0.1
_RANK_SPREAD = 0.1  # of the numbers of rows of different processes, at most


@dataclass
class Columns:
    """Names of the columns by meaning.

    Attributes
    ----------
    names : names by meaning, without the step.
    steps : columns that may be the step, best first.
    loss_parts : losses whose sum is the loss, if the log has no other.
    variables : names of columns by variables of a trajectory, which a monitor of `bnwd` writes.
    title : name of the logger; empty if it is not recognized.
    has_effective_gradient : whether the gradient column is g̃ already.
    """

    names: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    loss_parts: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    title: str = ""
    has_effective_gradient: bool = False


def check_names(names: Mapping[str, str] | None) -> dict[str, str]:
    """Check the meanings of `names`.

    Raises
    ------
    ValueError : a meaning does not exist.
    """
    checked = {_ALIASES.get(meaning, meaning): name for meaning, name in check_mapping("names", names).items()}
    if unknown := sorted(set(checked) - set(MEANINGS)):
        raise ValueError(f"names must be for {', '.join(MEANINGS)}, got {unknown}")
    return checked


def find_columns(table: Table, names: Mapping[str, str]) -> Columns:
    """Find the column of each meaning.

    Raises
    ------
    ValueError : a name is not of a column, several columns have one meaning, or the table is no log of one run.
    """
    _reject_runs_table(table)
    spread_metrics(table, set(names.values()))
    _strip_run_names(table, names)
    for name in names.values():
        if name and name not in table.columns:
            raise ValueError(f"names must be of columns, {format_names(all_names(table))}, got {quote(name)}")
    _keep_training_rows(table, names)
    _keep_first_process(table, names)
    normalized = _by_normalized_name(table)
    logger = _find_logger(table)
    columns = Columns(title=logger.title if logger else "")
    for meaning in MEANINGS:
        if meaning == "step":
            columns.steps = _find_steps(logger, normalized, names)
        elif meaning in names:
            if names[meaning]:
                columns.names[meaning] = names[meaning]
        elif name := _find_column(table, meaning, normalized, logger, set(names.values())):
            columns.names[meaning] = name
    if "loss" not in columns.names and names.get("loss") != "":
        _find_loss_parts(table, normalized, columns)
    _find_norm(table, normalized, names, columns)
    for variable, name in MONITOR_NAMES.items():
        if name in normalized and not (variable == "grad_norm" and "gradient" in columns.names):
            columns.variables[variable] = normalized[name][0]
    columns.has_effective_gradient = bool(TRAJECTORY_NAMES & set(normalized))
    if "loss" in columns.names and logger and "loss" in logger.names and columns.names["loss"].lower() == "value":
        loss = columns.names["loss"]
        table.remarks.append(f"The file does not name its quantity; the column {loss!r} is taken for the loss.")
    return columns


def _by_normalized_name(table: Table) -> dict[str, list[str]]:
    normalized: dict[str, list[str]] = {}
    for name in table.columns:
        normalized.setdefault(normalize(name), []).append(name)
    return normalized


def _find_logger(table: Table) -> Logger | None:
    names = {normalize(name) for name in (*table.columns, *table.names_seen)}
    for logger in LOGGERS:
        has_any = not logger.any_of or logger.any_of & names
        if table.kind in logger.kinds and logger.columns <= names and has_any:
            return logger
    return None


def _count_values(table: Table, name: str) -> int:
    return int((~np.isnan(table.numbers(name))).sum())


def _has_values(table: Table, name: str) -> bool:
    return _count_values(table, name) > 0


def _find_steps(logger: Logger | None, normalized: Mapping[str, list[str]], names: Mapping[str, str]) -> list[str]:
    if "step" in names:
        return [names["step"]] if names["step"] else []
    taken = set(names.values())
    steps = []
    own_names = logger.names.get("step", ()) if logger else ()
    for usual in dict.fromkeys((*own_names, *NAMES["step"])):
        candidates = [name for name in normalized.get(usual, []) if name not in taken]
        if len(candidates) > 1:
            raise ValueError(f"columns must have one step, got {candidates}; choose one by `names`")
        steps += candidates
    return steps


def _find_column(
    table: Table, meaning: str, normalized: Mapping[str, list[str]], logger: Logger | None, taken: Collection[str]
) -> str:
    """Name of the column of a meaning, empty if there is none."""
    usual_names = (*(logger.names.get(meaning, ()) if logger else ()), *NAMES[meaning])
    counts = {name: _count_values(table, name) for usual in usual_names for name in normalized.get(usual, [])}
    least = max(1.0, _LEAST_SHARE * max(counts.values(), default=0))
    for usual in usual_names:
        candidates = [name for name in normalized.get(usual, []) if name not in taken and counts[name] >= least]
        if len(candidates) > 1:
            raise ValueError(f"columns must have one {meaning}, got {candidates}; choose one by `names`")
        if candidates:
            return candidates[0]
    candidates = [
        name
        for usual, same in normalized.items()
        if fallback_meaning(usual) == meaning and usual not in NAMES[meaning]
        for name in same
        if name not in taken and _has_values(table, name)
    ]
    empty = [name for usual in usual_names for name in normalized.get(usual, []) if name not in taken]
    # a loss without numbers is better than none, for the message
    return _choose(table, meaning, candidates) or (empty[0] if meaning == "loss" and empty else "")


def _choose(table: Table, meaning: str, candidates: list[str]) -> str:
    """One of several columns with unusual names; empty if none is clearly the one."""
    if meaning == "loss" and len(candidates) > 1:
        words = {name: set(normalize(name).split("_")) for name in candidates}
        for preferred in ({"total"}, TRAINING_WORDS):
            better = [name for name in candidates if words[name] & preferred]
            if len(better) == 1:
                return better[0]
        return ""
    if len(candidates) <= 1:
        return candidates[0] if candidates else ""
    first = table.numbers(candidates[0])
    if meaning == "lr":
        if not all(np.array_equal(first, table.numbers(name), equal_nan=True) for name in candidates[1:]):
            table.remarks.append(
                f"{len(candidates)} columns look like a learning rate; {candidates[0]!r} is taken. "
                "Choose another one with names={'lr': …} or --column lr=…."
            )
        return candidates[0]
    examples = ", ".join(map(repr, candidates[:_MOST_REMARKED]))
    table.remarks.append(
        f"{len(candidates)} columns look like the {MEANINGS[meaning]} ({examples}), so none is taken. "
        f"Choose one with names={{{meaning!r}: …}} or --column {meaning}=…."
    )
    return ""


def _find_loss_parts(table: Table, normalized: Mapping[str, list[str]], columns: Columns) -> None:
    parts = [
        name
        for usual, same in normalized.items()
        if fallback_meaning(usual) == "loss"
        for name in same
        if _has_values(table, name)
    ]
    if len(parts) < 2:
        return
    if not all(_component(name) in LOSS_COMPONENTS for name in parts):
        raise ValueError(f"columns must have one loss, got {format_names(parts)}; choose one by `names`")
    columns.loss_parts = parts
    table.remarks.append(f"The log has no total loss. The loss is the sum of {', '.join(map(repr, parts))}.")


def _component(name: str) -> str:
    words = normalize(name).split("_")
    return "_".join(word for word in words if word not in TRAINING_WORDS | {"loss", "losses"})


def _find_norm(table: Table, normalized: Mapping[str, list[str]], names: Mapping[str, str], columns: Columns) -> None:
    """Decide what a column `norm` is: the weight norm only if another column is the gradient norm."""
    same = [name for name in normalized.get(AMBIGUOUS_NORM, []) if name not in names.values()]
    if not same or "norm" in columns.names or "norm" in names or same[0] == columns.names.get("gradient"):
        return
    if len(same) > 1:
        raise ValueError(f"columns must have one norm, got {same}; choose one by `names`")
    if TRAJECTORY_NAMES & set(normalized) or "gradient" in columns.names:
        columns.names["norm"] = same[0]
        return
    table.remarks.append(
        f"The column {same[0]!r} may be the norm of the weights or that of the gradient, so it is left "
        f"out. Choose with "
        f"names={{'norm': {same[0]!r}}} or names={{'gradient': {same[0]!r}}} "
        f"(--column norm={same[0]} or --column gradient={same[0]})."
    )


def _keep_training_rows(table: Table, names: Mapping[str, str]) -> None:
    """Leave out rows that a text column marks as validation or test."""
    for name, cells in table.columns.items():
        if normalize(name) not in PHASE_NAMES or name in names.values():
            continue
        words = [_phase_words(cell) for cell in cells]
        if not any(row & TRAINING_WORDS for row in words):
            continue
        training = np.array([not row & EVALUATION_WORDS for row in words])
        if not training.all():
            left_out = int((~training).sum())
            table.select(training)
            table.remarks.append(f"{left_out} rows are left out: {name!r} says that they are not of the training.")
        return


def _keep_first_process(table: Table, names: Mapping[str, str]) -> None:
    """Leave out rows of the other processes of a parallel training, which log the same steps."""
    for name in table.columns:
        if normalize(name) not in RANK_NAMES or name in names.values():
            continue
        rank = table.numbers(name)
        ranks, counts = np.unique(rank[np.isfinite(rank)], return_counts=True)
        # processes are numbered, and log equally many rows
        if ranks.size < 2 or (ranks != np.arange(ranks.size)).any() or np.ptp(counts) > _RANK_SPREAD * counts.max():
            continue
        others = rank > 0
        table.select(~others)
        table.remarks.append(f"{int(others.sum())} rows are left out: {name!r} says that they are of other processes.")
        return


def _phase_words(cell: object) -> frozenset[str]:
    return frozenset(normalize(cell).split("_")) if isinstance(cell, str) else frozenset()


def _strip_run_names(table: Table, names: Mapping[str, str]) -> None:
    """Shorten the names of a panel of W&B: "run - train/loss" becomes "train/loss"."""
    panel = [name for name in table.columns if _RUN_SEPARATOR in name]
    if table.kind != "csv" or not panel or set(panel) & set(names.values()):
        return
    panel_names = [name for name in panel if not name.endswith(_EXTREMES)]
    by_metric: dict[str, list[str]] = {}
    for name in panel_names:
        by_metric.setdefault(name.rpartition(_RUN_SEPARATOR)[2], []).append(name)
    used = {metric: same for metric, same in by_metric.items() if normalize(metric) != "wandb_step"}
    if len(panel_names) == len(panel) and not any(map(has_meaning, used)):
        return
    if several := next((same for same in used.values() if len(same) > 1), None):
        runs = [name.rpartition(_RUN_SEPARATOR)[0] for name in several]
        raise ValueError(
            f"path must be the log of one run, got {len(runs)} runs: {', '.join(format_names(runs))}. "
            f"Choose one by `names`, such as loss={several[0]!r}"
        )
    table.form = "export of a panel of Weights & Biases"
    renamed = {name: metric for metric, same in used.items() for name in same}
    # the axis and the metrics, without their extremes
    kept = {name: cells for name, cells in table.columns.items() if _RUN_SEPARATOR not in name or name in renamed}
    table.columns = {renamed.get(name, name): cells for name, cells in kept.items()}
    table.original_names = {metric: name for name, metric in renamed.items()}


def _reject_runs_table(table: Table) -> None:
    normalized = {normalize(name) for name in table.columns}
    is_table = {"name", "state"} <= normalized and bool(normalized & {"created", "runtime", "user", "tags", "sweep"})
    if table.kind in ("csv", "memory") and is_table:
        raise ValueError(
            f"path must be the log of one run, got a table of runs of Weights & Biases with {table.count} "
            f"rows, one for "
            "each run. Export the history of one run: wandb.Api().run(…).history().to_csv('log.csv')"
        )


def all_names(table: Table) -> Iterable[str]:
    """All names of a log, also of columns that cannot have a meaning."""
    return dict.fromkeys([*table.columns, *table.names_seen])
