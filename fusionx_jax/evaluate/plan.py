"""Which groups of cells the settings ask for."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fusionx_jax.evaluate.evaluation import Evaluation
from fusionx_jax.evaluate.evaluators import EVALUATORS, Problem
from fusionx_jax.evaluate.folds import Division
from fusionx_jax.evaluate.records import CellKey, Group, Method, ModalitySet
from fusionx_jax.evaluate.sources import BASELINES, Baseline


class Trial(NamedTuple):
    """A task on one division of the tiles."""

    division: Division
    problem: Problem


class Work(NamedTuple):
    """One group of cells, with the label subsets to measure on every division of the tiles, whose scores are joined.

    `baseline` is None for the evaluated method.
    """

    group: Group
    baseline: Baseline | None
    trials: list[Trial]
    keys: list[CellKey]


def plan(evaluation: Evaluation, tasks: Sequence[list[Trial]]) -> list[Work]:
    """Every group of cells that the settings ask for; groups that share features follow each other."""
    out = []
    for modalities in evaluation.modality_sets():
        for trials in tasks:
            problem = trials[0].problem
            if not _asks_for(evaluation, modalities, problem.labels.name):
                continue
            for group, baseline in _groups(evaluation, modalities, problem):
                keys = _keys(problem, EVALUATORS[group.evaluator].num_trainings(problem.config))
                out.append(Work(group, baseline, trials, keys))
    return out


def _asks_for(evaluation: Evaluation, modalities: ModalitySet, task: str) -> bool:
    """A single modality of several is given for `evaluate.single_sensor_tasks` only."""
    alone = len(modalities.available) == 1 and len(evaluation.available_modalities) > 1
    return not alone or task in evaluation.config.evaluate.single_sensor_tasks


def _groups(
    evaluation: Evaluation, modalities: ModalitySet, problem: Problem
) -> Iterator[tuple[Group, Baseline | None]]:
    e, task = evaluation.config.evaluate, problem.labels.name
    baselines = {name: BASELINES[name] for name in e.baselines}
    shared = {n: b for n, b in baselines.items() if not b.evaluator}
    for evaluator in e.evaluators:
        for name, baseline in [(None, None), *shared.items()]:
            if _applies(evaluation, evaluator, modalities, problem, baseline):
                method = evaluation.method if name is None else Method(name)
                yield Group(method, modalities, task, evaluator), baseline
    if modalities != evaluation.modality_sets()[0]:
        return
    for name, baseline in baselines.items():
        if baseline.evaluator and _applies(evaluation, baseline.evaluator, modalities, problem, baseline):
            yield Group(Method(name), modalities, task, baseline.evaluator), baseline


def _applies(
    evaluation: Evaluation, name: str, modalities: ModalitySet, problem: Problem, baseline: Baseline | None
) -> bool:
    evaluator = EVALUATORS[name]
    if not evaluator.score_kind(problem.labels.kind) or not evaluator.covers(problem.config, problem.labels.name):
        return False
    if evaluator.needs_each:
        given = len(modalities.available)
        incomplete = evaluation.fills_zeros and given < len(evaluation.config.modalities)
        if given < 2 or modalities.zero_filled or incomplete:
            return False
    if baseline is not None:
        pixels = problem.labels.kind == "pixel" and baseline.tiles_only
        if pixels or problem.labels.acquisitions < baseline.acquisitions:
            return False
    if baseline is not None and not baseline.encodes:  # a vector of statistics has no weights and no other modalities
        return not (evaluator.needs_training or evaluator.needs_each or modalities.zero_filled)
    return True


def _keys(problem: Problem, trainings: int | None) -> list[CellKey]:
    """The label subsets to use. With all labels they are one and the same, so one is enough unless something random is
    trained `trainings` times."""
    out = []
    for key, members in problem.subsets.items():
        if trainings is None:
            wanted = key.seed == 0 or len(members) < len(problem.labels.ids["train"])
        else:
            wanted = key.seed < trainings
        if wanted:
            out.append(key)
    return out
