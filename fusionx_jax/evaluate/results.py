"""Result rows: tidy CSV, one number a row, with its protocol."""

import csv
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fusionx_jax import files
from fusionx_jax.contract import InputError

FILE_NAME = "results.csv"
ALL_SEEDS = "all"
_BETWEEN = "; "  # class names may hold blanks and commas


class Row(NamedTuple):
    """One measured number.

    `seed` is the label subset's, or "all" for the mean over seeds, whose interval covers test examples and seeds.
    `protocol` says how regularisation was chosen and whose statistics normalised the input.
    """

    dataset: str
    method: str
    modalities: str
    task: str
    label_fraction: float
    num_labels: int
    seed: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    num_seeds: int
    protocol: str
    pooling: str
    regularisation: str
    absent_classes: str
    unscored_classes: str
    simulated: bool
    checkpoint: str
    config_hash: str


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


def join_names(names: Iterable[str]) -> str:
    """Class names as one cell."""
    return _BETWEEN.join(names)


def split_names(cell: str) -> list[str]:
    """The class names of a cell that `join_names` made."""
    return cell.split(_BETWEEN) if cell else []


def select(rows: Sequence[Row], **wanted) -> list[Row]:
    """Rows whose fields equal the wanted values."""
    return [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
