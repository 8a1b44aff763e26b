"""Measures the cells that an evaluation asks for and lacks, and writes its tables.

Frozen features of the training split feed the evaluators over label budgets and seeds; baselines go through the same
label subsets, regularization and metrics. The scored split is read once per reported number.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fusionx_jax import config as config_lib
from fusionx_jax import distributed, files, progress
from fusionx_jax.contract import Contract
from fusionx_jax.evaluate import compare, hashes, metrics, plan, rows, settings, subsets
from fusionx_jax.evaluate.cells import Cell
from fusionx_jax.evaluate.evaluation import Evaluation
from fusionx_jax.evaluate.evaluators import EVALUATORS, Problem, Scored, Source
from fusionx_jax.evaluate.labels import warn_of_absent_classes
from fusionx_jax.evaluate.numerics import metrics as numerics
from fusionx_jax.evaluate.plan import Trial
from fusionx_jax.evaluate.records import FOLDS, CellKey, Group, ModalitySet, Protocol
from fusionx_jax.evaluate.sources import BASELINES, context, method_source
from fusionx_jax.prepared import remote

SETTINGS_FILE = "evaluation.json"
DIFFERENCES_FILE = "differences.csv"
_RUNNING, _FINISHED, _POLL_S = "running", "finished", 1.0


class Resamples:
    """Bootstrap weights of the scored tiles, one set for every method, so that differences are paired."""

    def __init__(self, evaluation: Evaluation, trials: Sequence[Trial]):
        e = evaluation.config.evaluate
        scored = [t.problem.labels.groups[e.score_split] for t in trials if t.problem.labels.groups]
        groups = np.concatenate(scored) if scored else None
        if groups is not None and len(np.unique(groups)) < 2:
            groups = None
        self.unit = "tiles" if groups is None else "scenes"
        size = sum(t.division.prepared.size(e.score_split) for t in trials)
        self.weights = numerics.resample_weights(size, e.bootstrap, seed=0, groups=groups)


def measure(evaluation: Evaluation, with_earlier: bool = False) -> dict[Group, dict[CellKey, Cell]]:
    """Measures the cells that are missing, keeps each as soon as it is measured, and returns all that are asked for.

    `with_earlier` also returns cells that were asked for before, of the same weights, labels and settings.

    Raises:
      InputError: the settings make no sense, or do not fit the data.
    """
    settings.check(evaluation.config, evaluation.prepared)
    tasks = _tasks(evaluation)
    resamples = {name: Resamples(evaluation, trials) for name, trials in tasks.items()}
    store = evaluation.cell_store()
    source = _SourceCache(evaluation)
    out = {}
    work = plan.plan(evaluation, list(tasks.values()))
    with progress.Progress(sum(len(w.keys) for w in work), "cells", "cell") as bar:
        for w in work:
            kept = _current(store.read(w.group), w.trials)
            missing = [key for key in w.keys if key not in kept or stale_metrics(kept[key])]
            bar.advance(len(w.keys) - len(missing))
            if missing:
                scorer = _Scorer(w, resamples[w.group.task], source(w), evaluation)
                for batch in _score(w, source(w), missing, evaluation.prepared.contract):
                    store.add([scorer.cell(scored, kept.get(scored[0].key)) for scored in batch])
                    bar.advance(len(batch))
                kept = _current(store.read(w.group), w.trials)
            out[w.group] = {key: kept[key] for key in w.keys}
    if with_earlier:
        for group, cells in store.read_all().items():
            current = _current(cells, tasks[group.task]) if group.task in tasks else {}
            fresh = {key: cell for key, cell in current.items() if not stale_metrics(cell)}
            if group not in out and fresh:
                out[group] = fresh
    return out


def stale_metrics(cell: Cell) -> set[str]:
    """Registered metrics of the cell's kind that it lacks, or that were measured by another version."""
    return {m.name for m in metrics.metrics_of(cell.kind) if cell.versions.get(m.name) != m.version}


def _tasks(evaluation: Evaluation) -> dict[str, list[Trial]]:
    """The trials of each task."""
    out: dict[str, list[Trial]] = {}
    for labels in evaluation.labels:
        trials = out[labels.name] = []
        for division in evaluation.divisions(labels):
            drawn = evaluation.label_subsets(division)
            warn_of_absent_classes(division.labels, drawn)
            problem = Problem(division.labels, drawn, evaluation.config.evaluate, division.prepared)
            trials.append(Trial(division, problem))
    return out


def _score(
    work: plan.Work, source: Source, keys: Sequence[CellKey], contract: Contract
) -> Iterator[list[list[Scored]]]:
    """The scores of label subsets, each as a list of those of every trial."""
    evaluator = EVALUATORS[work.group.evaluator]
    done: dict[CellKey, list[Scored]] = {key: [] for key in keys}
    for trial in work.trials:
        features = trial.division.select(source.features, contract)
        each = trial.division.select(source.each, contract) if source.each else None
        here = dataclasses.replace(source, features=features, each=each)
        for batch in evaluator.score(here, trial.problem, keys):
            for scored in batch:
                done[scored.key].append(scored)
            complete = [done[s.key] for s in batch if len(done[s.key]) == len(work.trials)]
            if complete:
                yield complete


def _subset_digest(trials: Sequence[Trial], key: CellKey) -> str:
    """Hash of the labeled tiles of all trials."""
    found = [subsets.digest(t.problem.subsets[key]) for t in trials]
    return found[0] if len(found) == 1 else hashes.digest(found)


def _current(cells: Mapping[CellKey, Cell], trials: Sequence[Trial]) -> dict[CellKey, Cell]:
    """Those of the cells that were measured with the label subsets of `trials`."""
    drawn = trials[0].problem.subsets
    return {k: c for k, c in cells.items() if k in drawn and c.subset == _subset_digest(trials, k)}


class _SourceCache:
    """The sources of one set of modalities at a time: their features are large."""

    def __init__(self, evaluation: Evaluation):
        self._evaluation = evaluation
        self._modalities: ModalitySet | None = None
        self._sources: dict[tuple[str, int], Source] = {}

    def __call__(self, work: plan.Work) -> Source:
        if work.group.modalities != self._modalities:
            self._modalities, self._sources = work.group.modalities, {}
        dates = work.trials[0].problem.labels.acquisitions
        key = (work.group.method.spec, dates)
        if key not in self._sources:
            make = work.baseline.make if work.baseline else functools.partial(method_source, name=key[0])
            self._sources[key] = make(self._evaluation, modalities=work.group.modalities, acquisitions=dates)
        return self._sources[key]


class _Scorer:
    """Turns the scores of one group into cells."""

    def __init__(self, work: plan.Work, resamples: Resamples, source: Source, evaluation: Evaluation):
        self._work, self._resamples, self._source, self._evaluation = work, resamples, source, evaluation
        self._problems = [t.problem for t in work.trials]
        self._kind = EVALUATORS[work.group.evaluator].score_kind(self._problems[0].labels.kind)

    def cell(self, scored: Sequence[Scored], kept: Cell | None) -> Cell:
        """Every metric of the scores of all trials; of those that `kept` has, only stale ones are computed again."""
        labels, key = self._problems[0].labels, scored[0].key
        members = [p.subsets[key] for p in self._problems]
        absent = {c for p, m in zip(self._problems, members) for c in p.labels.absent_classes(m)}
        targets = np.concatenate([p.labels.targets[p.score_split] for p in self._problems])
        scores = metrics.Scores(np.concatenate([s.scores for s in scored]), targets, self._resamples.weights)
        names = {m.name for m in metrics.metrics_of(self._kind)}
        stale = names if kept is None else stale_metrics(kept)
        values = {} if kept is None else {k: v for k, v in kept.values.items() if k.name in names - stale}
        values |= metrics.evaluate(scores, self._kind, labels.classes, stale)
        counts = scores.confusion(self._kind)
        return Cell(
            group=self._work.group,
            key=key,
            kind=self._kind,
            num_labels=round(np.mean([len(m) for m in members])),
            absent_classes=tuple(c for c in labels.classes if c in absent),
            selected=" | ".join(dict.fromkeys(s.selected for s in scored)),
            protocol=self._protocol(scored[0]),
            values=values,
            versions={m.name: m.version for m in metrics.metrics_of(self._kind)},
            confusion=[] if counts is None else counts.tolist(),
            subset=_subset_digest(self._work.trials, key),
        )

    def _protocol(self, scored: Scored) -> Protocol:
        e = self._evaluation.config.evaluate
        zeros = self._source.encoder.zeros
        training = scored.training + (f"; zeros in place of {' and '.join(zeros)}" if zeros else "")
        selected_there = EVALUATORS[self._work.group.evaluator].selects_on_validation and e.score_split == "val"
        count = len(self._problems)
        split = FOLDS if count > 1 else e.score_split
        return Protocol(training, self._resamples.unit, e.statistics, split, selected_there, count if count > 1 else 0)


def encode_together(evaluation: Evaluation) -> None:
    """In a job of several processes: all of them encode their shares of the tiles, and the first process caches what
    evaluators of frozen features will read."""
    e = evaluation.config.evaluate
    evaluators = [EVALUATORS[name] for name in e.evaluators]
    splits = ["train", e.score_split, *(["val"] if any(x.selects_on_validation for x in evaluators) else [])]
    if e.get("folds", 0):
        splits = list(evaluation.prepared.contract.splits)
    contract = evaluation.prepared.contract
    dates = sorted({contract.tasks[t].acquisitions for t in e.tasks if t in contract.tasks})
    encoders = {evaluation.method.spec: functools.partial(method_source, name=evaluation.method.spec)}
    encoders |= {n: BASELINES[n].make for n in e.baselines if BASELINES[n].encodes and not BASELINES[n].evaluator}
    for modalities in evaluation.modality_sets():
        for make, count in itertools.product(encoders.values(), dates):
            source = make(evaluation, modalities=modalities, acquisitions=count, together=True)
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
