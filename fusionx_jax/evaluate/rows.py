"""Result rows: tidy CSV, one number a row, with its protocol."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from fusionx_jax import files
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import metrics as registry
from fusionx_jax.evaluate.cells import Cell, Cells
from fusionx_jax.evaluate.numerics import metrics as numerics
from fusionx_jax.evaluate.records import CellKey, Group, LabelBudget, MetricKey, ModalitySet, parse_budget
from fusionx_jax.types import Untyped

FILE_NAME = "results.csv"
_BETWEEN = "; "  # class names may hold blanks and commas

# What the number of a row is: one label subset of one pretraining, the mean over label subsets of one of several
# pretrainings, or the mean over all seeds, whose interval covers scored examples, label subsets and pretrainings.
SUBSET, PRETRAINING, MEAN = "subset", "pretraining", "mean"


class Row(NamedTuple):
    """One measured number; fields in the order of the CSV's columns.

    method, changes: a registered method, and the config changes of a variant ("" for the method itself).
    modalities, zero_filled: those given to the encoder, and those filled with zeros, joined by "+".
    label, label_fraction, num_labels: the label budget ("0.1" or "5-shot"), as a fraction and as labeled tiles.
    level, seed: SUBSET with the label subset's seed, PRETRAINING with the pretraining seed, or MEAN (seed -1).
    metric, class_name: a metric of `kind`; per-class metrics name a class.
    num_subsets, num_pretrainings: what the number is a mean over.
    score_split, statistics, optimistic: see `records.Protocol`; `protocol` is its sentence for people.
    """

    dataset: str
    method: str
    changes: str
    modalities: str
    zero_filled: str
    task: str
    evaluator: str
    label: str
    label_fraction: float
    num_labels: int
    level: str
    seed: int
    kind: str
    metric: str
    class_name: str
    value: float
    ci_low: float
    ci_high: float
    num_subsets: int
    num_pretrainings: int
    score_split: str
    statistics: str
    optimistic: bool
    protocol: str
    pooling: str
    selected: str
    absent_classes: str
    unscored_classes: str
    simulated: bool
    checkpoint: str
    config_hash: str

    @property
    def budget(self) -> LabelBudget:
        return parse_budget(self.label)

    @property
    def modality_set(self) -> ModalitySet:
        zeros = tuple(self.zero_filled.split("+")) if self.zero_filled else ()
        return ModalitySet(tuple(self.modalities.split("+")), zeros)


class Context(NamedTuple):
    """What rows state beside their cells. `unscored` gives, by task, the classes that the scored split cannot score."""

    dataset: str
    simulated: bool
    num_train: int
    unscored: dict[str, tuple[str, ...]]
    pooling: str
    checkpoint: str
    config_hash: str


class Pretraining(NamedTuple):
    """One group's cells for the weights of one pretraining seed, and what rows state of them."""

    seed: int
    context: Context
    cells: Cells


def common_seeds(pretrainings: Sequence[Cells], budget: LabelBudget) -> list[int]:
    """The seeds of the label subsets that every pretraining was evaluated with."""
    seeds = [{key.seed for key in cells if key.budget == budget} for cells in pretrainings]
    return sorted(set.intersection(*seeds)) if seeds else []


def vectors(pretrainings: Sequence[Cells], budget: LabelBudget, metric: MetricKey, seeds: Sequence[int]) -> np.ndarray:
    """Measurements [pretrainings, subsets, 1 + resamples] of one group of cells."""
    return np.stack([[cells[CellKey(budget, seed)].values[metric] for seed in seeds] for cells in pretrainings])


def from_cells(group: Group, pretrainings: Sequence[Pretraining]) -> Iterator[Row]:
    """Rows of one group: every label subset or every pretraining, then the mean over all seeds, also by class."""
    all_cells = [p.cells for p in pretrainings]
    for budget in dict.fromkeys(key.budget for key in all_cells[0]):
        seeds = common_seeds(all_cells, budget)
        if seeds:
            table = [[cells[CellKey(budget, seed)] for seed in seeds] for cells in all_cells]
            yield from _budget_rows(group, budget, pretrainings, table)


def _budget_rows(
    group: Group, budget: LabelBudget, pretrainings: Sequence[Pretraining], table: list[list[Cell]]
) -> Iterator[Row]:
    """Rows of one label budget; `table` holds the cells by pretraining and label subset."""
    seeds = [cell.key.seed for cell in table[0]]
    for metric in table[0][0].values:
        values = np.stack([[cell.values[metric] for cell in row] for row in table])
        if not metric.class_name and len(table) == 1:
            for i, seed in enumerate(seeds):
                part = [[table[0][i]]]
                yield _row(group, budget, metric, SUBSET, seed, values[:, i : i + 1], part, pretrainings)
        elif not metric.class_name:
            for i, one in enumerate(pretrainings):
                yield _row(group, budget, metric, PRETRAINING, one.seed, values[i : i + 1], [table[i]], [one])
        yield _row(group, budget, metric, MEAN, -1, values, table, pretrainings)


def _row(
    group: Group,
    budget: LabelBudget,
    metric: MetricKey,
    level: str,
    seed: int,
    values: np.ndarray,
    table: list[list[Cell]],
    pretrainings: Sequence[Pretraining],
) -> Row:
    cells = [cell for row in table for cell in row]
    first, context = cells[0], pretrainings[0].context
    definition = registry.find(first.kind, metric.name)
    interval = numerics.percentiles(numerics.resampled_means(values, seed=0))
    value, low, high = np.clip(interval, definition.low, definition.high).tolist()
    num_labels = float(np.mean([cell.num_labels for cell in table[0]]))
    absent = sorted({name for cell in table[0] for name in cell.absent_classes})
    return Row(
        dataset=context.dataset,
        method=group.method.name,
        changes=group.method.changes,
        modalities=group.modalities.name,
        zero_filled="+".join(group.modalities.zero_filled),
        task=group.task,
        evaluator=group.evaluator,
        label=budget.name,
        label_fraction=num_labels / context.num_train if budget.shots else budget.fraction,
        num_labels=round(num_labels),
        level=level,
        seed=seed,
        kind=first.kind,
        metric=metric.name,
        class_name=metric.class_name,
        value=value,
        ci_low=low,
        ci_high=high,
        num_subsets=values.shape[1],
        num_pretrainings=values.shape[0],
        score_split=first.protocol.score_split,
        statistics=first.protocol.statistics,
        optimistic=first.protocol.optimistic,
        protocol=first.protocol.title,
        pooling=context.pooling,
        selected=" ".join(cell.selected for cell in cells),
        absent_classes=join_names(absent),
        unscored_classes=join_names(context.unscored.get(group.task, ())),
        simulated=context.simulated,
        checkpoint=join_names(dict.fromkeys(p.context.checkpoint for p in pretrainings)),
        config_hash=join_names(dict.fromkeys(p.context.config_hash for p in pretrainings)),
    )


def write(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Writes all rows; the file has its final name only when it is complete."""
    write_table(path, Row._fields, (row._asdict() for row in rows))


def write_table(path: str | os.PathLike[str], columns: Sequence[str], records: Iterable[Mapping[str, object]]) -> None:
    """Writes records as CSV, floats with six digits; the file has its final name only when it is complete."""
    with files.replacing(path, newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        for record in records:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()})


def read(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a CSV that `write` made; empty if there is none.

    Raises:
      InputError: the file was made by something else, or by another version.
    """
    return read_table(path, Row)


_Record = TypeVar("_Record", bound=tuple)  # a NamedTuple class of str, int, float, bool fields
_READERS: dict[type, Callable[[str], Untyped]] = {
    bool: lambda text: {"True": True, "False": False}[text],
    int: int,
    float: float,
    str: str,
}


def read_table(path: str | os.PathLike[str], record: type[_Record]) -> list[_Record]:
    """Records of a CSV whose columns are the fields of the NamedTuple `record`; empty if there is no file.

    Raises:
      InputError: a column is missing, or a value is not of its field's type.
    """
    if not files.exists(path):
        return []
    readers = {name: _READERS[kind] for name, kind in record.__annotations__.items()}
    try:
        lines = csv.DictReader(io.StringIO(files.read_text(path), newline=""))
        return [record(*(parse(raw[name]) for name, parse in readers.items())) for raw in lines]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} does not hold the columns of this version ({type(error).__name__}: {error}); move it away and run "
            "the same command again."
        ) from error


def join_names(names: Iterable[str]) -> str:
    """Names as one CSV value."""
    return _BETWEEN.join(names)


def split_names(value: str) -> list[str]:
    """The names in a CSV value that `join_names` made."""
    return value.split(_BETWEEN) if value else []


def select(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Rows whose fields equal the wanted values."""
    return [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
