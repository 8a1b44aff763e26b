"""`fusionx bench evaluate`: seconds and memory of one method's label-efficiency sweep at BigEarthNet's size.

Features and labels are synthetic; everything that is timed is the code that `fusionx evaluate` runs. One fit of each
label fraction is measured and multiplied by the number of label subsets; the bootstrap is measured for one cell and
multiplied by the number of cells. The linear probe does not read the validation split, so it has none.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fusionx_jax import progress
from fusionx_jax.bench import process
from fusionx_jax.errors import InputError

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
_REGULARIZATION = np.geomspace(3e-4, 10.0, 10)  # the range of configs/default.py
_FOLDS = 5  # as configs/default.py
_LATENT = 32  # dimensions that features and labels share


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the synthetic problem.

    The defaults are BigEarthNet v2's splits (arXiv 2407.03653, table 1) and the mean of ViT-B's tokens by sensor.
    """

    train: int = 237_871
    test: int = 119_825
    features: int = 1_536
    classes: int = 19
    seeds: int = 5
    resamples: int = 1_000


class _Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        progress.logger.info("Measuring %s …", name)
        began = time.perf_counter()
        yield
        self.parts[name] = time.perf_counter() - began


def run(sizes: Sizes) -> dict[str, object]:
    """Seconds of each part, peak memory of this process, and the extrapolated seconds of a sweep.

    Raises:
      InputError: a size is too small to draw label subsets from.
    """
    if min(dataclasses.astuple(sizes)) < 1 or round(min(FRACTIONS) * sizes.train) < 2 * _FOLDS or sizes.classes < 2:
        raise InputError(
            f"The sizes are {dataclasses.asdict(sizes)}; all must be positive, with at least two classes and "
            f"{int(2 * _FOLDS / min(FRACTIONS))} training tiles ({2 * _FOLDS} labels at 1 %)."
        )
    clock = _Clock()
    with clock.part("synthetic_features"):
        train, targets, test, truth = _problem(sizes)
    sweep_s, scores = _fits(clock, sizes, train, targets, test)
    del train, test
    bootstrap_s = _cell(clock, sizes, scores, truth)
    cells = (len(FRACTIONS) - 1) * sizes.seeds + 1
    return {
        "sweep_s": sweep_s + cells * bootstrap_s,
        "bootstrap_s_per_cell": bootstrap_s,
        "peak_memory_bytes": process.memory("VmHWM"),
        "cells": cells,
        "parts_s": clock.parts,
        "sizes": dataclasses.asdict(sizes),
        "fractions": list(FRACTIONS),
        "cores": os.cpu_count(),
    }


def _problem(sizes: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Standardized features [N, D] and 0/1 labels [N, K] of the training and the test split.

    Both depend on a latent Gaussian vector; class shares fall from a half to 1 %.
    """
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(_LATENT, sizes.features)).astype(np.float32)
    classifier = rng.normal(size=(_LATENT, sizes.classes)).astype(np.float32)
    level = np.quantile(rng.normal(size=100_000) * _LATENT**0.5 * 1.2, 1 - np.geomspace(0.5, 0.01, sizes.classes))

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        latent = rng.normal(size=(count, _LATENT)).astype(np.float32)
        x = latent @ axes
        for start in range(0, count, 10_000):  # in parts: float64 noise of all tiles would set the peak of memory
            x[start : start + 10_000] += rng.normal(0, 6, (len(x[start : start + 10_000]), sizes.features))
        x /= x[:10_000].std(0)
        noise = rng.normal(0, 0.66 * _LATENT**0.5, (count, sizes.classes))
        return x, (latent @ classifier + noise > level).astype(np.float32)

    return *split(sizes.train), *split(sizes.test)


def _fits(
    clock: _Clock, sizes: Sizes, train: np.ndarray, targets: np.ndarray, test: np.ndarray
) -> tuple[float, np.ndarray]:
    """The extrapolated seconds of all subsets and fits, and the scores of the largest one."""
    from fusionx_jax.evaluate import subsets
    from fusionx_jax.evaluate.numerics import logistic

    with clock.part("label_subsets"):
        drawn = subsets.draw(targets > 0, FRACTIONS, (), 0)
    total = sizes.seeds * clock.parts["label_subsets"]
    for fraction in FRACTIONS:
        members = drawn[f"{fraction:g}"]
        name = f"fit_{fraction:g}"
        with clock.part(name):
            folds = logistic.fold_numbers(targets[members] > 0, _FOLDS, np.random.default_rng(0))
            fit = logistic.fit(train, targets, members[None], folds[None], _REGULARIZATION, test, softmax=False)
        total += clock.parts[name] * (sizes.seeds if fraction < 1 else 1)
    return total, np.asarray(fit.scores[0], np.float64)


def _cell(clock: _Clock, sizes: Sizes, scores: np.ndarray, truth: np.ndarray) -> float:
    """Seconds of all metrics of one cell with their resamples, of keeping it and of its rows."""
    from fusionx_jax.evaluate import metrics, rows
    from fusionx_jax.evaluate.cells import Cell, Store
    from fusionx_jax.evaluate.numerics import bootstrap
    from fusionx_jax.evaluate.records import CellKey, Group, LabelBudget, Method, ModalitySet, Protocol

    with clock.part("resamples"):
        weights = bootstrap.resample_weights(len(truth), sizes.resamples, seed=0)
    few = slice(0, min(len(truth), 256))  # compiles the kernel: once a machine
    metrics.evaluate(metrics.Scores(scores[few], truth[few], weights[few]), "multi", (), {"macro_map"})
    classes = tuple(f"class{k}" for k in range(sizes.classes))
    names = {m.name for m in metrics.metrics_of("multi")}
    with clock.part("bootstrap"):
        values = metrics.evaluate(metrics.Scores(scores, truth, weights), "multi", classes, names)
    group = Group(Method("fusionx"), ModalitySet(("a", "b")), "multi", "linear_probe")
    key = CellKey(LabelBudget(1.0), 0)
    cell = Cell(group, key, "multi", sizes.train, (), "", Protocol("bench", "tiles"), values, {}, [], "")
    with clock.part("cell_and_rows"), tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.add([cell])
        context = rows.Context("synthetic", True, sizes.train, {}, "mean_std", "", "")
        list(rows.from_cells(group, [rows.Pretraining(0, context, store.read(group))]))
    return clock.parts["bootstrap"] + clock.parts["cell_and_rows"]
