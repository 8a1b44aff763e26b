"""Measures the cells that an evaluation asks for and lacks, and writes its tables.

Frozen features of the training split feed the evaluators over label budgets and seeds; baselines go through the same
label subsets, regularization and metrics. The scored split is read once per reported number.
"""

import functools
import json
import time
from collections.abc import Mapping

import numpy as np

from fusionx_jax import config as config_lib
from fusionx_jax import distributed, files, progress
from fusionx_jax.evaluate import compare, metrics, plan, rows, settings, subsets
from fusionx_jax.evaluate.cells import Cell
from fusionx_jax.evaluate.evaluation import Evaluation
from fusionx_jax.evaluate.evaluators import EVALUATORS, Problem, Scored, Source
from fusionx_jax.evaluate.labels import Labels, warn_of_absent_classes
from fusionx_jax.evaluate.numerics import metrics as numerics
from fusionx_jax.evaluate.records import CellKey, Group, ModalitySet, Protocol
from fusionx_jax.evaluate.sources import BASELINES, context, method_source
from fusionx_jax.prepared import remote

SETTINGS_FILE = "evaluation.json"
DIFFERENCES_FILE = "differences.csv"
_RUNNING, _FINISHED, _POLL_S = "running", "finished", 1.0


class Resamples:
    """Bootstrap weights of the scored split, one set for every method, so that differences are paired."""

    def __init__(self, evaluation: Evaluation, labels: Labels):
        e = evaluation.config.evaluate
        groups = labels.groups
        if groups is not None and len(np.unique(groups)) < 2:
            groups = None
        self.unit = "tiles" if groups is None else "scenes"
        size = evaluation.prepared.size(e.score_split)
        self.weights = numerics.resample_weights(size, e.bootstrap, seed=0, groups=groups)


def measure(evaluation: Evaluation, with_earlier: bool = False) -> dict[Group, dict[CellKey, Cell]]:
    """Measures the cells that are missing, keeps each as soon as it is measured, and returns all that are asked for.

    `with_earlier` also returns cells that were asked for before, of the same weights, labels and settings.

    Raises:
      InputError: the settings make no sense, or do not fit the data.
    """
    settings.check(evaluation.config, evaluation.prepared)
    problems = _problems(evaluation)
    resamples = {p.labels.name: Resamples(evaluation, p.labels) for p in problems}
    store = evaluation.cell_store()
    source = _SourceCache(evaluation)
    out = {}
    work = plan.plan(evaluation, problems)
    with progress.Progress(sum(len(w.keys) for w in work), "cells", "cell") as bar:
        for w in work:
            kept = _current(store.read(w.group), w.problem)
            missing = [key for key in w.keys if key not in kept or stale_metrics(kept[key])]
            bar.advance(len(w.keys) - len(missing))
            if missing:
                evaluator = EVALUATORS[w.group.evaluator]
                for batch in evaluator.score(source(w), w.problem, missing):
                    scorer = _Scorer(w, resamples[w.problem.labels.name], source(w), evaluation)
                    store.add([scorer.cell(scored, kept.get(scored.key)) for scored in batch])
                    bar.advance(len(batch))
                kept = _current(store.read(w.group), w.problem)
            out[w.group] = {key: kept[key] for key in w.keys}
    if with_earlier:
        by_task = {p.labels.name: p for p in problems}
        for group, cells in store.read_all().items():
            current = _current(cells, by_task[group.task]) if group.task in by_task else {}
            fresh = {key: cell for key, cell in current.items() if not stale_metrics(cell)}
            if group not in out and fresh:
                out[group] = fresh
    return out


def stale_metrics(cell: Cell) -> set[str]:
    """Registered metrics of the cell's kind that it lacks, or that were measured by another version."""
    return {m.name for m in metrics.metrics_of(cell.kind) if cell.versions.get(m.name) != m.version}


def _problems(evaluation: Evaluation) -> list[Problem]:
    out = []
    for labels in evaluation.labels:
        drawn = evaluation.label_subsets(labels)
        warn_of_absent_classes(labels, drawn)
        out.append(Problem(labels, drawn, evaluation.config.evaluate, evaluation.prepared))
    return out


def _current(cells: Mapping[CellKey, Cell], problem: Problem) -> dict[CellKey, Cell]:
    """Those of the cells that were measured with the label subsets of `problem`."""
    drawn = problem.subsets
    return {k: c for k, c in cells.items() if k in drawn and c.subset == subsets.digest(drawn[k])}


class _SourceCache:
    """The sources of one set of modalities at a time: their features are large."""

    def __init__(self, evaluation: Evaluation):
        self._evaluation = evaluation
        self._modalities: ModalitySet | None = None
        self._sources: dict[str, Source] = {}

    def __call__(self, work: plan.Work) -> Source:
        if work.group.modalities != self._modalities:
            self._modalities, self._sources = work.group.modalities, {}
        name = work.group.method.spec
        if name not in self._sources:
            make = work.baseline.make if work.baseline else functools.partial(method_source, name=name)
            self._sources[name] = make(self._evaluation, modalities=work.group.modalities)
        return self._sources[name]


class _Scorer:
    """Turns the scores of one group into cells."""

    def __init__(self, work: plan.Work, resamples: Resamples, source: Source, evaluation: Evaluation):
        self._work, self._resamples, self._source, self._evaluation = work, resamples, source, evaluation
        self._kind = EVALUATORS[work.group.evaluator].score_kind(work.problem.labels.kind)

    def cell(self, scored: Scored, kept: Cell | None) -> Cell:
        """Every metric of one fit; of those that `kept` has, only stale ones are computed again."""
        problem = self._work.problem
        labels, members = problem.labels, problem.subsets[scored.key]
        scores = metrics.Scores(scored.scores, labels.targets[problem.score_split], self._resamples.weights)
        names = {m.name for m in metrics.metrics_of(self._kind)}
        stale = names if kept is None else stale_metrics(kept)
        values = {} if kept is None else {k: v for k, v in kept.values.items() if k.name in names - stale}
        values |= metrics.evaluate(scores, self._kind, labels.classes, stale)
        counts = scores.confusion(self._kind)
        return Cell(
            group=self._work.group,
            key=scored.key,
            kind=self._kind,
            num_labels=len(members),
            absent_classes=labels.absent_classes(members),
            selected=scored.selected,
            protocol=self._protocol(scored),
            values=values,
            versions={m.name: m.version for m in metrics.metrics_of(self._kind)},
            confusion=[] if counts is None else counts.tolist(),
            subset=subsets.digest(members),
        )

    def _protocol(self, scored: Scored) -> Protocol:
        e = self._evaluation.config.evaluate
        zeros = self._source.encoder.zeros
        training = scored.training + (f"; zeros in place of {' and '.join(zeros)}" if zeros else "")
        selected_there = EVALUATORS[self._work.group.evaluator].selects_on_validation and e.score_split == "val"
        return Protocol(training, self._resamples.unit, e.statistics, e.score_split, selected_there)


def encode_together(evaluation: Evaluation) -> None:
    """In a job of several processes: all of them encode their shares of the tiles, and the first process caches what
    evaluators of frozen features will read."""
    e = evaluation.config.evaluate
    evaluators = [EVALUATORS[name] for name in e.evaluators]
    splits = ["train", e.score_split, *(["val"] if any(x.selects_on_validation for x in evaluators) else [])]
    encoders = {evaluation.method.spec: functools.partial(method_source, name=evaluation.method.spec)}
    encoders |= {n: BASELINES[n].make for n in e.baselines if BASELINES[n].encodes and not BASELINES[n].evaluator}
    for modalities in evaluation.modality_sets():
        for make in encoders.values():
            source = make(evaluation, modalities=modalities, together=True)
            for split in dict.fromkeys(splits):
                source.features(split)
                if any(x.needs_each for x in evaluators) and len(modalities.available) > 1 and source.each:
                    source.each(split)


def evaluate_together(evaluation: Evaluation) -> str:
    """As `evaluate`, for a job of several processes: all encode, then the first fits the evaluators.

    The others wait in the job: on a TPU slice no process may leave while others compute. They wait for a file, since a
    collective would time out; if the first process fails, `distributed.job` ends them.
    """
    marker = files.join(evaluation.workdir, "evaluate.state")
    if distributed.is_first():
        _write_state(marker, _RUNNING)
    encode_together(evaluation)
    if distributed.is_first():
        path = evaluate(evaluation)
        _write_state(marker, _FINISHED)
        return path
    progress.logger.info("The tiles are encoded; waiting for the first process, which fits the evaluators.")
    while files.read_text(marker) != _FINISHED:
        time.sleep(_POLL_S)
    return files.join(evaluation.workdir, rows.FILE_NAME)


def _write_state(marker: str, state: str) -> None:
    with files.replacing(marker) as f:
        f.write(state)


def evaluate(evaluation: Evaluation) -> str:
    """Measures all cells, writes `results.csv` and `differences.csv` in the workdir, and returns the former's path.

    Differences are those of the run's own method and the baselines. Rows of other data sets are kept.
    """
    cells = measure(evaluation, with_earlier=True)
    pretraining = functools.partial(rows.Pretraining, evaluation.config.seed)
    measured = {
        group: [pretraining(context(evaluation, group.method), group_cells)] for group, group_cells in cells.items()
    }
    new_rows = [row for group, pretrainings in measured.items() for row in rows.from_cells(group, pretrainings)]
    dataset = evaluation.prepared.contract.name
    path = files.join(evaluation.workdir, rows.FILE_NAME)
    rows.write(path, [r for r in rows.read(path) if r.dataset != dataset] + new_rows)
    other = files.join(evaluation.workdir, DIFFERENCES_FILE)
    kept = [d for d in rows.read_table(other, compare.Difference) if d.dataset != dataset]
    table = [*kept, *compare.differences(measured, evaluation.method)]
    rows.write_table(other, compare.Difference._fields, (d._asdict() for d in table))
    with files.replacing(files.join(evaluation.workdir, SETTINGS_FILE)) as f:
        content = {
            "dataset": remote.absolute(evaluation.prepared.directory),
            "checkpoint": evaluation.saved.path,
            "config": config_lib.to_json(evaluation.config),
        }
        json.dump(content, f, indent=1)
    return path
