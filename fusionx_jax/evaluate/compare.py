"""Comparisons: paired differences of methods and of variants, labels needed, cost.

Everything here is made from the cells of finished pretrainings (see `members.py`). Differences are paired: the same
scored tiles, bootstrap resamples and label subsets on both sides.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusionx_jax.evaluate import evaluators, rows
from fusionx_jax.evaluate import metrics as registry
from fusionx_jax.evaluate.cells import Cell, Cells
from fusionx_jax.evaluate.numerics import metrics as numerics
from fusionx_jax.evaluate.numerics import significance
from fusionx_jax.evaluate.records import CellKey, Group, LabelBudget, Method, MetricKey, ModalitySet
from fusionx_jax.evaluate.rows import Pretraining
from fusionx_jax.types import JsonObject

REFERENCE = Method("fusionx")  # that the others are compared with, unless another is named
WINS, TIES, LOSES = "wins", "ties", "loses"

Measured = Mapping[Group, Sequence[Pretraining]]


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether the interval lies above zero, around it or below it."""
        return WINS if self.low > 0 else LOSES if self.high < 0 else TIES


class Difference(NamedTuple):
    """The reference method minus another method: one row of differences.csv.

    `reference` is the reference's verdict. `p_value` is two-sided, of a normal distribution with the deviation of the
    bootstrap resamples; `p_holm` is Holm's correction of it over all methods and label budgets of a reference, task,
    modality set and metric, for tables in which many differences are tested. `reference_evaluator` differs from
    `evaluator` where the other method has no frozen features: networks trained from scratch are compared with the
    reference's linear probe.
    """

    dataset: str
    method: str
    changes: str
    modalities: str
    zero_filled: str
    task: str
    evaluator: str
    reference_evaluator: str
    label: str
    kind: str
    metric: str
    reference_minus_method: float
    ci_low: float
    ci_high: float
    reference: str
    num_subsets: int
    num_pretrainings: int
    reference_pretrainings: int
    score_split: str
    simulated: bool
    p_value: float = np.nan
    p_holm: float = np.nan


class Ablation(NamedTuple):
    """A variant minus the method that it changes: one row of ablations.csv."""

    dataset: str
    method: str
    changes: str
    modalities: str
    zero_filled: str
    task: str
    evaluator: str
    label: str
    kind: str
    metric: str
    value: float
    method_value: float
    variant_minus_method: float
    ci_low: float
    ci_high: float
    num_subsets: int
    num_pretrainings: int
    score_split: str
    simulated: bool


class LabelsNeeded(NamedTuple):
    """Labels with which a method reaches a network trained on all labels: one row of labels_needed.csv.

    `labels` is infinite where the target is not reached with all labels; `least_tried` is the smallest budget measured.
    """

    dataset: str
    method: str
    changes: str
    modalities: str
    zero_filled: str
    task: str
    evaluator: str
    target_method: str
    kind: str
    metric: str
    target: float
    labels: float
    ci_low: float
    ci_high: float
    all_labels: int
    least_tried: float
    simulated: bool


APART = "modalities encoded alone"  # `FusionGain.against`, beside single modalities


class FusionGain(NamedTuple):
    """What a method gains by encoding all modalities together: one row of fusion_gains.csv.

    `against` is the single modality with the higher score, or APART: the features of each modality encoded alone, side
    by side. `synergy` are the classes that all modalities together tell better than every single one, with an interval
    above zero (only against a single modality, for tasks with several classes a tile).
    """

    dataset: str
    method: str
    changes: str
    modalities: str
    zero_filled: str
    task: str
    evaluator: str
    against: str
    label: str
    kind: str
    metric: str
    together: float
    other: float
    gain: float
    ci_low: float
    ci_high: float
    synergy: str
    num_subsets: int
    num_pretrainings: int
    score_split: str
    simulated: bool


class _Side(NamedTuple):
    """One side of a paired comparison: cells by pretraining, and the label subsets to average over."""

    pretrainings: Sequence[Cells]
    seeds: Sequence[int]

    def means(self, budget: LabelBudget, metric: MetricKey) -> np.ndarray:
        """Means [1 + resamples] over pretrainings and label subsets."""
        return numerics.resampled_means(rows.vectors(self.pretrainings, budget, metric, self.seeds), seed=0)


def paired_sides(ours: Sequence[Cells], theirs: Sequence[Cells], budget: LabelBudget) -> tuple[_Side, _Side] | None:
    """The label subsets that both sides were evaluated with, the same tiles in all pretrainings; None without any.

    With all labels there is one subset, and networks trained on it several times have more seeds than it.
    """
    our_seeds, their_seeds = rows.common_seeds(ours, budget), rows.common_seeds(theirs, budget)
    pairs = ((ours, our_seeds), (theirs, their_seeds))
    subsets = {cells[CellKey(budget, s)].subset for side, seeds in pairs for cells in side for s in seeds}
    if not (our_seeds and their_seeds and len(subsets) == 1):
        every = [*ours, *theirs]
        shared = [s for s in our_seeds if s in their_seeds]
        our_seeds = [s for s in shared if len({cells[CellKey(budget, s)].subset for cells in every}) == 1]
        their_seeds = our_seeds
    return (_Side(ours, our_seeds), _Side(theirs, their_seeds)) if our_seeds else None


class Paired(NamedTuple):
    """Two means over the same label subsets, and the first minus the second with its paired 95 % interval."""

    ours: float
    theirs: float
    gap: Interval
    num_subsets: int
    p_value: float


def paired_difference(
    ours: Sequence[Cells], theirs: Sequence[Cells], budget: LabelBudget, metric: MetricKey
) -> Paired | None:
    """The means of both sides and their paired difference; None without a label subset that both have."""
    sides = paired_sides(ours, theirs, budget)
    if sides is None:
        return None
    left, right = (side.means(budget, metric) for side in sides)
    gaps = left - right
    interval = Interval(*numerics.percentiles(gaps))
    return Paired(float(left[0]), float(right[0]), interval, len(sides[0].seeds), significance.p_value(gaps))


def differences(measured: Measured, reference: Method = REFERENCE) -> list[Difference]:
    """The reference minus every other method, variants excluded (see `ablations`); see `paired_difference`."""
    found = list(_differences(measured, reference))
    families: dict[tuple[str, ...], list[int]] = {}
    for i, d in enumerate(found):
        key = (d.task, d.modalities, d.zero_filled, d.reference_evaluator, d.kind, d.metric)
        families.setdefault(key, []).append(i)
    for members in families.values():
        for i, corrected in zip(members, significance.holm([found[i].p_value for i in members])):
            found[i] = found[i]._replace(p_holm=float(corrected))
    return found


def _differences(measured: Measured, reference: Method) -> Iterator[Difference]:
    for group, pretrainings in measured.items():
        if group.method == reference or group.method.changes:
            continue
        counterpart = evaluators.EVALUATORS[group.evaluator].counterpart
        base = measured.get(group._replace(method=reference, evaluator=counterpart), ())
        if not base:
            continue
        theirs, ours = _cells(pretrainings), _cells(base)
        kind, metric = _main_metric(theirs)
        for budget in _budgets(theirs):
            paired = paired_difference(ours, theirs, budget, metric)
            if paired is None:
                continue
            gap = paired.gap
            yield Difference(
                **_identity(group, pretrainings), label=budget.name, kind=kind, metric=metric.name,
                reference_evaluator=counterpart, reference_minus_method=gap.value, ci_low=gap.low, ci_high=gap.high,
                reference=gap.verdict, num_subsets=paired.num_subsets, num_pretrainings=len(theirs),
                reference_pretrainings=len(ours), score_split=_score_split(theirs), p_value=paired.p_value,
            )  # fmt: skip


def ablations(measured: Measured) -> Iterator[Ablation]:
    """Every variant of a method minus the method itself, with the pretraining seeds that both have."""
    for group, pretrainings in measured.items():
        base = measured.get(group._replace(method=Method(group.method.name)), ())
        both = {p.seed for p in pretrainings} & {p.seed for p in base}
        if not group.method.changes or not both:
            continue
        variant, method = (_cells([p for p in side if p.seed in both]) for side in (pretrainings, base))
        kind, metric = _main_metric(variant)
        for budget in _budgets(variant):
            paired = paired_difference(variant, method, budget, metric)
            if paired is None:
                continue
            gap = paired.gap
            yield Ablation(
                **_identity(group, pretrainings), label=budget.name, kind=kind, metric=metric.name,
                value=paired.ours, method_value=paired.theirs, variant_minus_method=gap.value, ci_low=gap.low,
                ci_high=gap.high, num_subsets=paired.num_subsets, num_pretrainings=len(both),
                score_split=_score_split(variant),
            )  # fmt: skip


def fusion_gains(measured: Measured) -> Iterator[FusionGain]:
    """The probe of all modalities together against that of the best single one, and against all encoded alone."""
    for group, pretrainings in measured.items():
        given = group.modalities.available
        if len(given) < 2 or group.modalities.zero_filled or group.evaluator != _TOGETHER:
            continue
        ours = _cells(pretrainings)
        kind, metric = _main_metric(ours)
        single = {m: measured.get(group._replace(modalities=ModalitySet((m,))), ()) for m in given}
        apart = measured.get(group._replace(evaluator=_APART), ())
        for budget in _budgets(ours):
            known = {m: _cells(p) for m, p in single.items() if p and budget in _budgets(_cells(p))}
            others: dict[str, Sequence[Cells]] = {}
            if len(known) == len(given):
                best = max(known, key=lambda m: _mean(known[m], budget, metric))
                others[best] = known[best]
            if apart and budget in _budgets(_cells(apart)):
                others[APART] = _cells(apart)
            for name, theirs in others.items():
                paired = paired_difference(ours, theirs, budget, metric)
                if paired is None:
                    continue
                gap = paired.gap
                yield FusionGain(
                    **_identity(group, pretrainings), against=name, label=budget.name, kind=kind, metric=metric.name,
                    together=paired.ours, other=paired.theirs, gain=gap.value, ci_low=gap.low, ci_high=gap.high,
                    synergy=rows.join_names(_synergy(ours, known, budget) if name != APART else ()),
                    num_subsets=paired.num_subsets, num_pretrainings=len(ours), score_split=_score_split(ours),
                )  # fmt: skip


_TOGETHER, _APART = "linear_probe", "linear_probe_apart"


def _mean(pretrainings: Sequence[Cells], budget: LabelBudget, metric: MetricKey) -> float:
    return float(_Side(pretrainings, rows.common_seeds(pretrainings, budget)).means(budget, metric)[0])


def _synergy(ours: Sequence[Cells], single: Mapping[str, Sequence[Cells]], budget: LabelBudget) -> list[str]:
    """The classes whose average precision is higher with all modalities than with each single one."""
    keys = [k for k in _first(ours).values if k.name == "ap"]
    out = []
    for key in keys:
        gaps = [paired_difference(ours, theirs, budget, key) for theirs in single.values()]
        if all(gap is not None and gap.gap.verdict == WINS for gap in gaps):
            out.append(key.class_name)
    return out


def labels_needed(measured: Measured) -> Iterator[LabelsNeeded]:
    """The labels with which each method matches each network trained from scratch on all of them."""
    whole = LabelBudget(fraction=1.0)
    for target_group, target_pretrainings in measured.items():
        rival = _cells(target_pretrainings)
        if not evaluators.EVALUATORS[target_group.evaluator].from_scratch or whole not in _budgets(rival):
            continue
        kind, metric = _main_metric(rival)
        target = _Side(rival, rows.common_seeds(rival, whole)).means(whole, metric)
        for group, pretrainings in measured.items():
            if (group.modalities, group.task) != (target_group.modalities, target_group.task):
                continue
            curve = _curve(_cells(pretrainings), metric) if group.method != target_group.method else None
            if curve is None:
                continue
            needed = numerics.labels_needed(curve.counts, curve.values, target)
            low, high = np.percentile(needed[1:], [2.5, 97.5], method="nearest") if len(needed) > 1 else (np.nan,) * 2
            yield LabelsNeeded(
                **_identity(group, pretrainings), target_method=target_group.method.spec, kind=kind,
                metric=metric.name, target=float(target[0]), labels=float(needed[0]), ci_low=float(low),
                ci_high=float(high), all_labels=pretrainings[0].context.num_train, least_tried=curve.counts[0],
            )  # fmt: skip


class _Curve(NamedTuple):
    counts: list[float]
    values: np.ndarray


def _curve(pretrainings: Sequence[Cells], metric: MetricKey) -> _Curve | None:
    """A method's resampled means by number of labels; None where a budget has no subset that all pretrainings share."""
    budgets = [b for b in _budgets(pretrainings) if not b.shots]
    sides = [_Side(pretrainings, rows.common_seeds(pretrainings, b)) for b in budgets]
    if not budgets or any(not side.seeds for side in sides) or metric not in _first(pretrainings).values:
        return None
    counts = [float(np.mean([c.num_labels for k, c in pretrainings[0].items() if k.budget == b])) for b in budgets]
    return _Curve(counts, np.stack([side.means(b, metric) for side, b in zip(sides, budgets)]))


def _identity(group: Group, pretrainings: Sequence[Pretraining]) -> JsonObject:
    """The columns that all tables share."""
    context = pretrainings[0].context
    return {
        "dataset": context.dataset,
        "method": group.method.name,
        "changes": group.method.changes,
        "modalities": group.modalities.name,
        "zero_filled": "+".join(group.modalities.zero_filled),
        "task": group.task,
        "evaluator": group.evaluator,
        "simulated": context.simulated,
    }


def _cells(pretrainings: Sequence[Pretraining]) -> list[Cells]:
    return [p.cells for p in pretrainings]


def _first(pretrainings: Sequence[Cells]) -> Cell:
    return next(iter(pretrainings[0].values()))


def _budgets(pretrainings: Sequence[Cells]) -> list[LabelBudget]:
    return sorted({key.budget for key in pretrainings[0]}, key=lambda b: b.sort_key)


def _main_metric(pretrainings: Sequence[Cells]) -> tuple[str, MetricKey]:
    kind = _first(pretrainings).kind
    return kind, MetricKey(registry.main_metric(kind).name)


def _score_split(pretrainings: Sequence[Cells]) -> str:
    return _first(pretrainings).protocol.score_split
