"""Cells: what one method scored with one label subset, every metric with its bootstrap resamples, kept on disk.

A cell is measured once. Adding a method, a seed or an evaluator measures what is missing; rows, intervals and paired
differences are made from cells alone. All methods share the resamples of the test split, so that the difference of two
cells' vectors is a paired difference.
"""

import json
import os
import urllib.parse
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusionx_jax import files, progress


class Cell(NamedTuple):
    """Identity, facts and measurements of one score matrix.

    label: a share of the training labels such as "0.1", or "5-shot". `values` maps each metric to [1 + resamples]
    numbers: the sample itself, then its bootstrap draws. `confusion` counts true (rows) by predicted class for
    single-label and pixel tasks, empty for others. `subset` is a digest of the labeled tiles.
    """

    method: str
    modalities: str
    task: str
    evaluator: str
    label: str
    seed: int
    num_labels: int
    absent: str
    chosen: str
    protocol: str
    values: dict[str, np.ndarray]
    confusion: list[list[int]]
    subset: str = ""

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What shares a file: cells that one run of an evaluator measures together."""
        return self.method, self.modalities, self.task, self.evaluator


class Store:
    """Cells of one evaluation in a folder, one file a group; a damaged file counts as absent.

    `settings` is a word by evaluator for what touches its cells alone: those measured under another are measured anew.
    """

    def __init__(self, directory: str, settings: Mapping[str, str] | None = None):
        self.directory, self._settings = directory, settings or {}

    def _path(self, group: Sequence[str]) -> str:
        name = "-".join(urllib.parse.quote(part, safe="+=,.() ") for part in group)
        return os.path.join(self.directory, name.replace(" ", "_") + ".npz")

    def read(self, group: Sequence[str]) -> dict[tuple[str, int], Cell]:
        """Cells of a group by (label, seed)."""
        path = self._path(group)
        settings, found = _read(path) if os.path.exists(path) else ("", {})
        return found if settings == self._settings.get(group[3], "") else {}

    def read_all(self) -> dict[tuple[str, str, str, str], dict[tuple[str, int], Cell]]:
        """All cells, by group."""
        names = sorted(os.listdir(self.directory)) if os.path.isdir(self.directory) else []
        held = [_read(os.path.join(self.directory, name)) for name in names if name.endswith(".npz")]
        groups = {next(iter(cells.values())).group: (settings, cells) for settings, cells in held if cells}
        return {g: cells for g, (settings, cells) in groups.items() if settings == self._settings.get(g[3], "")}

    def add(self, cells: Iterable[Cell]) -> None:
        """Keeps cells of one group beside those there are."""
        cells = list(cells)
        if not cells:
            return
        known = self.read(cells[0].group)
        known |= {(c.label, c.seed): c for c in cells}
        metrics = list(cells[0].values)
        identity = ("label", "seed", "num_labels", "absent", "chosen", "protocol", "confusion", "subset")
        facts = {
            "group": cells[0].group,
            "settings": self._settings.get(cells[0].evaluator, ""),
            "metrics": metrics,
            "cells": [{k: getattr(c, k) for k in identity} for c in known.values()],
        }
        values = np.array([[c.values[m] for m in metrics] for c in known.values()], np.float32)
        os.makedirs(self.directory, exist_ok=True)
        with files.replacing(self._path(cells[0].group), "wb") as f:
            np.savez(f, facts=np.array(json.dumps(facts)), values=values)


def _read(path: str) -> tuple[str, dict[tuple[str, int], Cell]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            vectors = stored["values"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        progress.logger.warning("The cells in %s are damaged and will be measured again.", path)
        return "", {}
    out = {}
    for fact, values in zip(facts["cells"], vectors):
        cell = Cell(*facts["group"], **fact, values=dict(zip(facts["metrics"], values)))
        out[cell.label, cell.seed] = cell
    return facts["settings"], out
