"""Parts that the page of a run and the page of a comparison share."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from fusionx_jax import files
from fusionx_jax.contract import Contract
from fusionx_jax.evaluate import rows
from fusionx_jax.evaluate.compare import Difference
from fusionx_jax.evaluate.records import Method
from fusionx_jax.evaluate.rows import Row
from fusionx_jax.report import figures, look, tables
from fusionx_jax.report.look import Picture
from fusionx_jax.report.tables import Table

FIGURES = "figures"
PAGE = "report.html"
TABLES = "tables.md"
_KINDS = {
    "multi": "several classes per tile",
    "single": "one class per tile",
    "pixel": "one class per pixel",
    "cover": "class shares of a tile",
}


class Section(NamedTuple):
    """A heading with figures and tables."""

    heading: str
    pictures: list[Picture]
    tables: list[Table]


def task_sections(
    records: Sequence[Row], differences: Sequence[Difference], reference: Method, directory: str
) -> list[Section]:
    """For each task, its curves, scores and paired differences."""
    out = []
    for task in dict.fromkeys(r.task for r in records):
        of_task = rows.select(records, task=task)
        metrics = tables.metrics_of(tables.main_rows(of_task))
        kinds = list(dict.fromkeys(m.kind for m in metrics))
        pictures = []
        for metric in (m for m in metrics if m.main):
            name = f"label_efficiency_{task}" + (f"_{metric.kind}" if metric.kind != kinds[0] else "")
            path = figures.label_efficiency(of_task, metric, reference, directory, name)
            if path is not None:
                alt = f"{metric.label} against the share of labels for each method"
                pictures.append(Picture(look.embed(path), alt, _curve_caption(of_task)))
        gaps = tables.difference_tables([d for d in differences if d.task == task], reference)
        title = ", ".join(_KINDS.get(kind, kind) for kind in kinds)
        out.append(Section(f"Few labels: {title} ({task})", pictures, tables.score_tables(of_task, reference) + gaps))
    return out


def _curve_caption(records: Sequence[Row]) -> str:
    splits = " and ".join(sorted({r.score_split for r in records}))
    return (
        "Lines: mean over label subsets and pretraining seeds. Bands: 95 % bootstrap intervals over "
        f"{splits} examples, subsets and seeds, widened for small numbers of them. At 100 % all label subsets are the "
        "same."
    )


def class_section(records: Sequence[Row]) -> list[Section]:
    """Per-class metrics, if there are any."""
    found = tables.class_tables(records)
    return [Section("Class by class", [], found)] if found else []


def data_text(contract: Contract) -> str:
    """Where the data come from, and under which license."""
    return (
        f"{contract.source_version}. Splits: {contract.split_origin}. License: {contract.license}. {contract.citation} "
        + " ".join(contract.notes)
    )


def score_split(records: Sequence[Row]) -> str:
    """The split that was scored; "test" without rows."""
    return records[0].score_split if records else "test"


def short_path(path: str) -> str:
    """A path relative to the current folder where it lies inside it."""
    relative = path if files.is_address(path) else os.path.relpath(path)
    return path if relative.startswith("..") else relative
