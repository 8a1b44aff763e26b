"""Result rows: tidy CSV, one number a row, with its protocol."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusionx_jax import files
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate.cells import Cell
from fusionx_jax.evaluate.numerics import metrics

FILE_NAME = "results.csv"
ALL_SEEDS = "all"
_BETWEEN = "; "  # class names may hold blanks and commas


class Row(NamedTuple):
    """One measured number.

    `label` is a share of the labels ("0.1") or "5-shot". `seed` is the label subset's, "pretraining 2" for the mean
    over label subsets of one of several pretraining seeds, or "all" for the mean over all seeds, whose interval covers
    test examples and seeds. `protocol` says how regularization was chosen and whose statistics normalized the input.
    """

    dataset: str
    method: str
    modalities: str
    task: str
    evaluator: str
    label: str
    label_fraction: float
    num_labels: int
    seed: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    num_seeds: int
    num_pretrainings: int
    protocol: str
    pooling: str
    regularization: str
    absent_classes: str
    unscored_classes: str
    simulated: bool
    checkpoint: str
    config_hash: str


class Context(NamedTuple):
    """What rows say beside their cells."""

    dataset: str
    simulated: bool
    num_train: int
    unscored: dict[str, str]  # by task
    pooling: str
    checkpoint: str
    config_hash: str


class Pretraining(NamedTuple):
    """One group's cells by (label, seed) of the weights of one pretraining seed, and what rows say of them."""

    seed: int
    context: Context
    cells: Mapping[tuple[str, int], Cell]


def complete(pretrainings: Sequence[Mapping[tuple[str, int], Cell]], label: str) -> list[int]:
    """The label subsets' seeds that every pretraining has been judged with."""
    seeds = [{seed for name, seed in cells if name == label} for cells in pretrainings]
    return sorted(set.intersection(*seeds)) if seeds else []


def vectors(
    pretrainings: Sequence[Mapping[tuple[str, int], Cell]], label: str, metric: str, seeds: Sequence[int]
) -> np.ndarray:
    """Measurements [pretrainings, seeds, 1 + resamples] of one group of cells."""
    return np.stack([[cells[label, seed].values[metric] for seed in seeds] for cells in pretrainings])


def from_cells(group: tuple[str, str, str, str], pretrainings: Sequence[Pretraining]) -> Iterator[Row]:
    """Rows of one group (method, modalities, task, evaluator): every label subset or every pretraining, then the mean
    over all seeds, with per-class results."""
    method, shown, task, evaluator = group
    held, context = [p.cells for p in pretrainings], pretrainings[0].context
    for label in dict.fromkeys(name for name, _ in held[0]):
        seeds = complete(held, label)
        if not seeds:
            continue
        cells = [[by[label, seed] for seed in seeds] for by in held]
        absent = [set(split_names(c.absent)) for c in cells[0]]
        counts = [c.num_labels for c in cells[0]]

        def row(metric, seed, values, facts, own, of=pretrainings, label=label, counts=counts):
            found = metrics.percentiles(metrics.resampled_means(values, seed=0))
            return Row(
                dataset=context.dataset,
                method=method,
                modalities=shown,
                task=task,
                evaluator=evaluator,
                label=label,
                label_fraction=counts[0] / context.num_train if label.endswith("shot") else float(label),
                num_labels=facts[0].num_labels if len(own) == 1 else round(float(np.mean(counts))),
                seed=seed,
                metric=metric,
                **dict(
                    zip(("value", "ci_low", "ci_high"), np.clip(found, *metrics.RANGES.get(metric, (0, 1))).tolist())
                ),
                num_seeds=values.shape[1],
                num_pretrainings=values.shape[0],
                protocol=facts[0].protocol,
                pooling="" if method == "band_statistics" else context.pooling,
                regularization=" ".join(f.chosen for f in facts),
                absent_classes=join_names(sorted(set().union(*own))),
                unscored_classes=context.unscored.get(task, ""),
                simulated=context.simulated,
                checkpoint=join_names(dict.fromkeys(p.context.checkpoint for p in of)),
                config_hash=join_names(dict.fromkeys(p.context.config_hash for p in of)),
            )

        for metric in cells[0][0].values:
            values = vectors(held, label, metric, seeds)
            if "/" not in metric:
                if len(pretrainings) == 1:
                    for i, seed in enumerate(seeds):
                        yield row(metric, str(seed), values[:, i : i + 1], cells[0][i : i + 1], absent[i : i + 1])
                else:
                    for i, one in enumerate(pretrainings):
                        yield row(metric, f"pretraining {one.seed}", values[i : i + 1], cells[i], absent, [one])
            yield row(metric, ALL_SEEDS, values, [c for own in cells for c in own], absent)


def write(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Writes all rows under the final name only when complete."""
    with files.replacing(path, newline="") as f:
        writer = csv.writer(f)
        writer.writerow(Row._fields)
        for row in rows:
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])


def read(path: str | os.PathLike) -> list[Row]:
    """Rows of a CSV that `write` made; empty if there is none.

    Raises:
      InputError: the file was made by something else.
    """
    if not os.path.exists(path):
        return []
    try:
        with open(path, newline="", encoding="utf-8") as f:
            return [_typed(raw) for raw in csv.DictReader(f)]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} does not hold result rows of this version ({type(error).__name__}: {error}); move it away."
        ) from error


def _typed(raw: dict[str, str]) -> Row:
    values = []
    for field, kind in Row.__annotations__.items():
        text = raw[field]
        if kind is bool:
            values.append(text == "True")
        else:
            values.append(kind(text))
    return Row(*values)


def label_order(label: str) -> tuple[bool, float]:
    """Sorts labels: fractions first, then shots, each rising."""
    shot = label.endswith("-shot")
    return shot, float(label.removesuffix("-shot"))


def label_name(label: str) -> str:
    """ "10 %" or "5-shot"."""
    return label if label.endswith("-shot") else f"{100 * float(label):g} %"


def join_names(names: Iterable[str]) -> str:
    """Class names as one cell."""
    return _BETWEEN.join(names)


def split_names(cell: str) -> list[str]:
    """The class names of a cell that `join_names` made."""
    return cell.split(_BETWEEN) if cell else []


def select(rows: Sequence[Row], **wanted) -> list[Row]:
    """Rows whose fields equal the wanted values."""
    return [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
