"""Cells: what one model scored with one label subset, every metric with its bootstrap resamples, kept on disk.

A cell is measured once. Adding a method, a seed, an evaluator or a metric measures what is missing; correcting a metric
(its version) or an evaluator (its settings hash, which holds its version) measures what it affects again. Rows,
intervals and paired differences are made from cells alone. All methods share the resamples of the scored split, so the
difference of two cells' vectors is a paired difference.
"""

import hashlib
import io
import json
import urllib.parse
import zipfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fusionx_jax import files, progress
from fusionx_jax.evaluate.records import CellKey, Group, LabelBudget, Method, MetricKey, ModalitySet, Protocol
from fusionx_jax.types import Json

_FORMAT = 2  # of the files; others are measured anew


class Cell(NamedTuple):
    """Identity, facts and measurements of one fit.

    kind: of its scores, see `metrics.Scores`.
    absent_classes: classes without an example in the label subset.
    selected: the hyperparameters that were selected, for people.
    values: [1 + resamples] by metric: the sample itself, then its bootstrap draws.
    versions: the version of each metric when it was measured.
    confusion: counts of true (rows) by predicted class for single-label and pixel tasks, empty for others.
    subset: hash of the labeled tiles.
    """

    group: Group
    key: CellKey
    kind: str
    num_labels: int
    absent_classes: tuple[str, ...]
    selected: str
    protocol: Protocol
    values: dict[MetricKey, np.ndarray]
    versions: dict[str, int]
    confusion: list[list[int]]
    subset: str

    def value(self, metric: str, class_name: str = "") -> float:
        """The metric of the sample itself."""
        return float(self.values[MetricKey(metric, class_name)][0])


Cells = Mapping[CellKey, Cell]


class Store:
    """Cells of one evaluation in a folder, one file a group; a damaged file counts as missing.

    `settings` gives, by evaluator, the hash of what affects its cells alone (see `hashes.evaluator_hashes`): cells
    that were measured under another are measured again.
    """

    def __init__(self, directory: str, settings: Mapping[str, str] | None = None):
        self.directory, self._settings = directory, settings or {}

    def _path(self, group: Group) -> str:
        return files.join(self.directory, file_name(group))

    def read(self, group: Group) -> dict[CellKey, Cell]:
        """Cells of a group by label subset."""
        path = self._path(group)
        settings, cells = _read(path) if files.exists(path) else ("", {})
        return cells if settings == self._settings.get(group.evaluator, "") else {}

    def read_all(self) -> dict[Group, dict[CellKey, Cell]]:
        """All cells, by group."""
        names = sorted(files.listdir(self.directory)) if files.is_folder(self.directory) else []
        out = {}
        for name in names:
            settings, cells = _read(files.join(self.directory, name)) if name.endswith(".npz") else ("", {})
            group = next((c.group for c in cells.values()), None)
            if group is not None and settings == self._settings.get(group.evaluator, ""):
                out[group] = cells
        return out

    def add(self, cells: Iterable[Cell]) -> None:
        """Keeps cells of one group beside those in its file."""
        cells = list(cells)
        if not cells:
            return
        group = cells[0].group
        kept = self.read(group) | {c.key: c for c in cells}
        files.makedirs(self.directory)
        with files.replacing(self._path(group), "wb") as f:
            f.write(_encode(kept.values(), self._settings.get(group.evaluator, "")))


def file_name(group: Group) -> str:
    """Readable and unique: the group's fields, and a hash where a field had to be shortened."""
    zeros = f"_zeros_{'+'.join(group.modalities.zero_filled)}" if group.modalities.zero_filled else ""
    parts = (group.method.spec, group.modalities.name + zeros, group.task, group.evaluator)
    name = "-".join(urllib.parse.quote(part, safe="+=,.()_") for part in parts)
    if len(name) > 150:  # file systems allow 255 bytes
        name = f"{name[:120]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{name}.npz"


def _encode(cells: Iterable[Cell], settings: str) -> bytes:
    cells = list(cells)
    keys = list(dict.fromkeys(key for c in cells for key in c.values))  # cells may lack a metric that was added later
    facts = {
        "format": _FORMAT,
        "settings": settings,
        "group": cells[0].group,
        "metrics": keys,
        "cells": [
            {
                "key": c.key,
                "kind": c.kind,
                "num_labels": c.num_labels,
                "absent_classes": c.absent_classes,
                "selected": c.selected,
                "protocol": c.protocol._asdict(),
                "versions": c.versions,
                "confusion": c.confusion,
                "subset": c.subset,
                "metrics": [k in c.values for k in keys],
            }
            for c in cells
        ],
    }
    length = max(len(v) for c in cells for v in c.values.values())
    values = np.full((len(cells), len(keys), length), np.nan, np.float32)
    for row, cell in zip(values, cells):
        for place, key in enumerate(keys):
            if key in cell.values:
                row[place] = cell.values[key]
    out = io.BytesIO()
    np.savez(out, facts=np.array(json.dumps(facts)), values=values)
    return out.getvalue()


def _read(path: str) -> tuple[str, dict[CellKey, Cell]]:
    try:
        with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            values = stored["values"]
        if facts.get("format") != _FORMAT:
            return "", {}
        return facts["settings"], {c.key: c for c in _decode(facts, values)}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        progress.logger.warning("The cells in %s are damaged and will be measured again.", path)
        return "", {}


def _decode(facts: Mapping[str, Json], values: np.ndarray) -> list[Cell]:
    method, modalities, task, evaluator = facts["group"]
    group = Group(Method(*method), ModalitySet(*(tuple(m) for m in modalities)), task, evaluator)
    keys = [MetricKey(*k) for k in facts["metrics"]]
    return [
        Cell(
            group=group,
            key=CellKey(LabelBudget(*raw["key"][0]), raw["key"][1]),
            kind=raw["kind"],
            num_labels=raw["num_labels"],
            absent_classes=tuple(raw["absent_classes"]),
            selected=raw["selected"],
            protocol=Protocol(**raw["protocol"]),
            values={k: row[i] for i, k in enumerate(keys) if raw["metrics"][i]},
            versions=raw["versions"],
            confusion=raw["confusion"],
            subset=raw["subset"],
        )
        for raw, row in zip(facts["cells"], values)
    ]
