"""Tables of pages as typed records, made from result rows and from the tables of a comparison.

A table holds every evaluator, metric, method and modality set of its records. Values of metrics that end at 1 are
printed times 100, others as they are.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from fusionx_jax import methods
from fusionx_jax.evaluate import metrics, rows
from fusionx_jax.evaluate.compare import Ablation, Difference, LabelsNeeded
from fusionx_jax.evaluate.evaluators import EVALUATORS
from fusionx_jax.evaluate.members import Cost
from fusionx_jax.evaluate.metrics import METRICS, Metric
from fusionx_jax.evaluate.records import FOLDS, LabelBudget, Method, ModalitySet, parse_budget
from fusionx_jax.evaluate.rows import Row
from fusionx_jax.evaluate.sources import BASELINES
from fusionx_jax.report import look
from fusionx_jax.report.look import Grouped, Line

_MISSING = "–"
_WHOLE = LabelBudget(fraction=1.0)

Record = TypeVar("Record", bound=Grouped)


class TableCell(NamedTuple):
    """A value, and in small print its interval and what else belongs to it."""

    value: str = _MISSING
    detail: str = ""


class TableRow(NamedTuple):
    """A line of a table; `emphasized` for the method that the page is about."""

    name: str
    cells: tuple[TableCell, ...]
    emphasized: bool = False


class Table(NamedTuple):
    """A table; `first` heads the column of names."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    first: str = "method"
    caption: str = ""


def factor(metric: Metric) -> int:
    """What values are multiplied with: 100 where they end at 1."""
    return 100 if metric.high == 1 else 1


def unit_label(metric: Metric) -> str:
    """The metric's name and the factor of its values."""
    return f"{metric.label} (× 100)" if factor(metric) == 100 else metric.label


def number(metric: Metric, value: float, sign: str = "") -> str:
    """A value as tables print it: one decimal where it is times 100, else three significant digits."""
    if not math.isfinite(value):
        return _MISSING
    return f"{100 * value:{sign}.1f}" if factor(metric) == 100 else f"{value:{sign}.3g}"


def interval(metric: Metric, low: float, high: float) -> str:
    """A 95 % interval; empty without one."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(metric, low)}{' to ' if low < 0 else '–'}{number(metric, high)}"


def signed_interval(metric: Metric, low: float, high: float) -> str:
    """The 95 % interval of a difference; empty without one."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(metric, low, '+')} to {number(metric, high, '+')}"


def main_rows(records: Iterable[Row]) -> list[Row]:
    """The means over all seeds, without those of single classes."""
    return [r for r in records if r.level == rows.MEAN and not r.class_name]


def metrics_of(records: Iterable[Row]) -> list[Metric]:
    """The metrics of rows in the registry's order.

    Raises:
      InputError: a row's metric is not registered.
    """
    unique = {metrics.find(r.kind, r.metric).versioned for r in records}
    return [m for m in METRICS.values() if m.versioned in unique]


def score_tables(records: Sequence[Row], reference: Method) -> list[Table]:
    """A task's tables: every metric on its fullest modality set, then the main metrics on the other sets."""
    means = main_rows(records)
    fullest, others = [], []
    for metric in metrics_of(means):
        chosen = [r for r in means if (r.kind, r.metric) == (metric.kind, metric.name)]
        first, *rest = look.sort_modality_sets(chosen)
        fullest.append(_score_table(chosen, metric, first, reference))
        others += [_score_table(chosen, metric, modalities, reference) for modalities in rest if metric.main]
    return fullest + others


def _score_table(records: Sequence[Row], metric: Metric, modalities: ModalitySet, reference: Method) -> Table:
    """One line for each method and evaluator, one column for each label budget."""
    chosen = [r for r in records if r.modality_set == modalities]
    budgets = _budgets(chosen)
    counts = {r.budget: r.num_labels for r in chosen}
    most = max(r.num_subsets for r in chosen)
    most_pretrainings = max(r.num_pretrainings for r in chosen)
    lines = []
    for line in look.sort_lines(chosen):
        by_budget = {r.budget: r for r in chosen if look.line(r) == line}
        name = line.label + _line_note(line, list(by_budget.values()), most_pretrainings)
        cells = tuple(_score_cell(metric, by_budget[b], most) if b in by_budget else TableCell() for b in budgets)
        lines.append(TableRow(name, cells, line.method == reference))
    splits = {r.score_split for r in chosen} - {"test"}
    where = ", ".join(["", *(("all folds" if s == FOLDS else f"{s} split") for s in sorted(splits))])
    columns = tuple(f"{b.title} ({counts[b]})" for b in budgets)
    return Table(f"{unit_label(metric)}, {modalities.title}{where}", columns, tuple(lines))


def _line_note(line: Line, records: Sequence[Row], most_pretrainings: int) -> str:
    """What distinguishes a line from the others: optimistic selection, fewer pretrainings."""
    note = ", selected on the scored split" if any(r.optimistic for r in records) else ""
    pretrainings = max(r.num_pretrainings for r in records)
    if pretrainings < most_pretrainings and _pretrained(line):
        note += f", {count('pretraining seed', pretrainings)}"
    return note


def _pretrained(line: Line) -> bool:
    """Whether a line's scores depend on a pretraining's weights or seed."""
    name = line.method.name
    encodes = name not in BASELINES or BASELINES[name].encodes
    return encodes and not EVALUATORS[line.evaluator].from_scratch


def _score_cell(metric: Metric, row: Row, most_subsets: int) -> TableCell:
    parts = [interval(metric, row.ci_low, row.ci_high)]
    if row.num_subsets < most_subsets and row.budget != _WHOLE:  # with all labels, subsets do not differ
        parts.append(count("subset", row.num_subsets))
    return TableCell(number(metric, row.value), ", ".join(filter(None, parts)))


def class_tables(records: Iterable[Row]) -> list[Table]:
    """Per-class metrics with the most labels: one table for each task and metric, one line for each class."""
    chosen = [r for r in records if r.level == rows.MEAN and r.class_name]
    out = []
    for task in dict.fromkeys(r.task for r in chosen):
        for metric in metrics_of(r for r in chosen if r.task == task):
            measured = [r for r in chosen if (r.task, r.kind, r.metric) == (task, metric.kind, metric.name)]
            out.append(_class_table(task, metric, in_figures(measured)))
    return out


def in_figures(records: Sequence[Record]) -> list[Record]:
    """The records whose evaluators figures draw; all where there are none."""
    return [r for r in records if EVALUATORS[r.evaluator].in_figures] or list(records)


def _class_table(task: str, metric: Metric, records: Sequence[Row]) -> Table:
    most = max((r.budget for r in records), key=lambda b: (not b.shots, b.sort_key))
    chosen = [r for r in records if r.budget == most]
    unscored = {name for r in chosen for name in rows.split_names(r.unscored_classes)}
    sets = look.sort_modality_sets(chosen)
    columns = [(line, s) for line in look.sort_lines(chosen) for s in sets]
    value = {(look.line(r), r.modality_set, r.class_name): r for r in chosen}
    columns = [c for c in columns if any(key[:2] == c for key in value)]
    lines = []
    for name in dict.fromkeys(r.class_name for r in chosen):
        cells = [value.get((*column, name)) if name not in unscored else None for column in columns]
        cells_of_line = tuple(TableCell() if r is None else _class_cell(metric, r) for r in cells)
        lines.append(TableRow(look.class_label(name), cells_of_line))
    usual = columns[0][0].evaluator
    heading = f"{unit_label(metric)}, task {task}, {most.title} of the labels"
    caption = (
        f"Evaluator: {EVALUATORS[usual].label}, where no other is named. ±: half of the 95 % interval. –: not scored, "
        "for lack of tiles with or without the class."
    )
    names = tuple(_class_column(line, s, line.evaluator != usual) for line, s in columns)
    return Table(heading, names, tuple(lines), "class", caption)


def _class_column(line: Line, modalities: ModalitySet, name_evaluator: bool) -> str:
    drawn = methods.presentation(line.method.name)
    name = look.method_label(line.method) if line.method.changes else drawn.short
    evaluator = f", {EVALUATORS[line.evaluator].label}" if name_evaluator else ""
    return f"{name}{evaluator}, {modalities.title}"


def _class_cell(metric: Metric, row: Row) -> TableCell:
    if not math.isfinite(row.value):
        return TableCell()
    half = (row.ci_high - row.ci_low) / 2
    return TableCell(number(metric, row.value), f"±{number(metric, half)}" if math.isfinite(half) else "")


def difference_tables(differences: Sequence[Difference], reference: Method) -> list[Table]:
    """A task's paired differences, one table for each metric and modality set."""
    out = []
    for kind, name in dict.fromkeys((d.kind, d.metric) for d in differences):
        metric = metrics.find(kind, name)
        chosen = [d for d in differences if (d.kind, d.metric) == (kind, name)]
        for modalities in look.sort_modality_sets(chosen):
            those = [d for d in chosen if look.modality_set(d) == modalities]
            out.append(_difference_table(those, metric, modalities, reference))
    return out


def _difference_table(
    records: Sequence[Difference], metric: Metric, modalities: ModalitySet, reference: Method
) -> Table:
    budgets = _budgets(records)
    lines = []
    for line in look.sort_lines(records):
        by_budget = {parse_budget(d.label): d for d in records if look.line(d) == line}
        cells = tuple(_difference_cell(metric, by_budget[b]) if b in by_budget else TableCell() for b in budgets)
        lines.append(TableRow(line.label, cells))
    points = "points" if factor(metric) == 100 else metric.label
    heading = f"{look.method_label(reference)} minus each method, paired: {metric.label} ({points}), {modalities.title}"
    return Table(heading, tuple(b.title for b in budgets), tuple(lines))


def _difference_cell(metric: Metric, d: Difference) -> TableCell:
    detail = signed_interval(metric, d.ci_low, d.ci_high)
    return TableCell(
        number(metric, d.reference_minus_method, "+"), f"{detail}, {d.reference}" if detail else d.reference
    )


def ablation_tables(records: Iterable[Row], ablations: Sequence[Ablation]) -> list[Table]:
    """Variants below the method that they change, with paired differences where both share pretraining seeds."""
    variants = [r for r in main_rows(records) if r.changes and metrics.find(r.kind, r.metric).main]
    out = []
    for task, kind, name in dict.fromkeys((r.task, r.kind, r.metric) for r in variants):
        chosen = [r for r in variants if (r.task, r.kind, r.metric) == (task, kind, name)]
        paired = [a for a in ablations if (a.task, a.kind, a.metric) == (task, kind, name)]
        for modalities in look.sort_modality_sets(chosen):
            those = [r for r in chosen if r.modality_set == modalities]
            pairs = [a for a in paired if look.modality_set(a) == modalities]
            heading = f"{unit_label(metrics.find(kind, name))}, task {task}, {modalities.title}"
            out.append(_ablation_table(heading, metrics.find(kind, name), those, pairs))
    return out


def _ablation_table(heading: str, metric: Metric, records: Sequence[Row], ablations: Sequence[Ablation]) -> Table:
    budgets = _budgets(records)
    value = {(look.line(r), r.budget): r for r in records}
    paired = {(look.line(a), parse_budget(a.label)): a for a in ablations}
    lines, bases = [], set()
    for line in look.sort_lines(records):
        base = Line(Method(line.method.name), line.evaluator)
        pairs = [paired.get((line, b)) for b in budgets]
        if base not in bases and any(pairs):
            bases.add(base)
            seeds = max(a.num_pretrainings for a in pairs if a is not None)
            cells = tuple(TableCell() if a is None else TableCell(number(metric, a.method_value)) for a in pairs)
            lines.append(TableRow(f"{base.label}, {count('pretraining seed', seeds)}", cells, True))
        scored = [value.get((line, b)) for b in budgets]
        cells = tuple(TableCell() if r is None else _ablation_cell(metric, r, a) for r, a in zip(scored, pairs))
        lines.append(TableRow(line.label, cells))
    caption = "Small: difference from the method itself with the same pretraining seeds, with its paired interval."
    return Table(heading, tuple(b.title for b in budgets), tuple(lines), "network", caption)


def _ablation_cell(metric: Metric, row: Row, paired: Ablation | None) -> TableCell:
    if paired is None:
        return TableCell(number(metric, row.value), interval(metric, row.ci_low, row.ci_high))
    gap = number(metric, paired.variant_minus_method, "+")
    bounds = signed_interval(metric, paired.ci_low, paired.ci_high)
    return TableCell(number(metric, row.value), f"{gap}: {bounds}" if bounds else gap)


def needed_tables(records: Sequence[LabelsNeeded], reference: Method) -> list[Table]:
    """Labels with which each method matches networks trained from scratch on all labels, by modality set."""
    out = []
    for task in dict.fromkeys(r.task for r in records):
        chosen = [r for r in records if r.task == task]
        for modalities in look.sort_modality_sets(chosen):
            those = [r for r in chosen if look.modality_set(r) == modalities]
            out.append(_needed_table(f"task {task}, {modalities.title}", those, reference))
    return out


def _needed_table(where: str, records: Sequence[LabelsNeeded], reference: Method) -> Table:
    targets = list(dict.fromkeys((r.target_method, r.kind, r.metric, r.target) for r in records))
    cell = {(look.line(r), r.target_method, r.kind, r.metric, r.target): _needed_cell(r) for r in records}
    lines = []
    for line in look.sort_lines(records):
        cells = tuple(cell.get((line, *target), TableCell()) for target in targets)
        lines.append(TableRow(line.label, cells, line.method == reference))
    columns = []
    for spec, kind, name, value in targets:
        metric = metrics.find(kind, name)
        columns.append(f"{methods.presentation(spec).short}, {metric.label} {number(metric, value)}")
    heading = f"Labeled tiles, {where}; all: {records[0].all_labels}"
    return Table(heading, tuple(columns), tuple(lines))


def _needed_cell(record: LabelsNeeded) -> TableCell:
    def labels(value: float) -> str:
        if not math.isfinite(value):
            return "never"
        return f"≤ {record.least_tried:.0f}" if value <= record.least_tried else f"{value:.0f}"

    return TableCell(labels(record.labels), f"{labels(record.ci_low)} to {labels(record.ci_high)}")


def cost_table(costs: Sequence[Cost]) -> Table:
    """Size and speed of the pretraining of every method and variant."""
    by_method = {Method(c.method, c.changes): c for c in costs}
    lines = []
    for method in look.sort_methods(by_method):
        c = by_method[method]
        millions = (c.parameters / 1e6, c.encoder_parameters / 1e6)
        values = (
            f"{c.num_pretrainings}", *(f"{m:.2f}" for m in millions), _plain(c.flops_per_pair / 1e6),
            _plain(c.pairs_per_s), f"{c.num_steps}", f"{c.learning_rate:g}" if c.num_steps else _MISSING,
            f"{c.features}" if c.features else _MISSING,
        )  # fmt: skip
        lines.append(TableRow(look.method_label(method), tuple(TableCell(v) for v in values)))
    columns = ("seeds", "parameters (M)", "encoder (M)", "MFLOP per pair", "pairs/s", "steps", "rate per 256 pairs",
               "features read")  # fmt: skip
    return Table("", columns, tuple(lines))


def _plain(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else _MISSING


def _budgets(records: Iterable[Row | Difference]) -> list[LabelBudget]:
    return sorted({parse_budget(r.label) for r in records}, key=lambda b: b.sort_key)


def count(noun: str, number_of: int) -> str:
    """A number and its noun, e.g. "1 seed", "2 seeds"."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"
