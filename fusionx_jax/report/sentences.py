"""Sentences of pages, made from the fields of records: comparisons by paired differences, notices, the protocol."""

import math
from collections.abc import Iterable, Sequence

from fusionx_jax.contract import Contract
from fusionx_jax.evaluate import metrics, rows
from fusionx_jax.evaluate.compare import LOSES, TIES, WINS, Difference
from fusionx_jax.evaluate.evaluators import EVALUATORS
from fusionx_jax.evaluate.records import FOLDS, Method, parse_budget
from fusionx_jax.evaluate.rows import Row
from fusionx_jax.report import look, tables
from fusionx_jax.report.look import Line

# Below this the page states that it compares nothing: with 500 tiles, the standard error of an accuracy of one half is
# 2.2 points (the square root of 0.25 / 500), as much as methods differ.
FEW_SCORED_TILES = 500
_SIGNIFICANT = 0.05  # as the 95 % intervals


def findings(differences: Sequence[Difference], reference: Method) -> list[str]:
    """One sentence for each task, method and evaluator: the budgets at which the reference wins, ties and loses.

    A win or loss has a paired 95 % interval that excludes zero. Each method is compared on the fullest modality set
    that it shares with the reference; the tables hold the others, and evaluators that figures do not draw.
    """
    drawn = [d for d in differences if EVALUATORS[d.evaluator].in_figures or EVALUATORS[d.evaluator].needs_each]
    chosen = drawn or list(differences)
    out = []
    for task in dict.fromkeys(d.task for d in chosen):
        of_task = [d for d in chosen if d.task == task]
        fullest = look.sort_modality_sets(of_task)[0]
        for line in look.sort_lines(of_task):
            of_line = [d for d in of_task if look.line(d) == line]
            modalities = look.sort_modality_sets(of_line)[0]
            where = "" if modalities == fullest else f" on {modalities.title}"
            compared = [d for d in of_line if look.modality_set(d) == modalities]
            out += _line_findings(compared, line, where, reference)
    return out


def _line_findings(records: Sequence[Difference], line: Line, where: str, reference: Method) -> list[str]:
    out = []
    for kind, name in dict.fromkeys((d.kind, d.metric) for d in records):
        metric = metrics.find(kind, name)
        chosen = [d for d in records if (d.kind, d.metric) == (kind, name)]
        budgets: dict[str, list[str]] = {WINS: [], TIES: [], LOSES: []}
        for d in sorted(chosen, key=lambda d: parse_budget(d.label).sort_key):
            gap = tables.number(metric, d.reference_minus_method, "+")
            budgets[d.reference].append(f"{parse_budget(d.label).title} ({gap})")
        text = "; ".join(f"{verdict} at {', '.join(at)}" for verdict, at in budgets.items() if at)
        out.append(
            f"{chosen[0].task}, {metric.label}: {look.method_label(reference)} against {line.label}{where} {text}."
        )
    return out


def comparison_note(differences: Sequence[Difference]) -> str:
    """How `findings` decides; empty without differences."""
    if not differences:
        return ""
    split = differences[0].score_split
    which = "tiles of all folds" if split == FOLDS else f"{split} tiles"
    text = (
        f"Paired differences on the same {which}, label subsets and bootstrap resamples, in points. Wins and "
        "losses have a 95 % interval that excludes zero."
    )
    tested = [d for d in differences if math.isfinite(d.p_holm)]
    if tested:
        apart = sum(d.reference != TIES for d in tested)
        kept = sum(d.p_holm < _SIGNIFICANT for d in tested)
        text += (
            f" {apart} of {len(tested)} differences do; {kept} still do after Holm's correction for the number of "
            "methods and label budgets that are compared (p_holm in differences.csv)."
        )
    if min(d.reference_pretrainings for d in differences) == 1:
        text += " Where the reference has one pretraining, the intervals do not cover other pretraining seeds."
    return text


def notices(contract: Contract, score_split: str, missing: str = "") -> list[str]:
    """What readers must know first: simulated data, too few tiles for a comparison, or `missing` without evaluation."""
    out = []
    if contract.simulated:
        out.append(
            "All data on this page are simulated. They compare methods under known difficulties and say nothing about "
            "real land."
        )
    scored = sum(contract.splits.values()) if score_split == FOLDS else contract.splits.get(score_split, 0)
    if missing:
        out.append(missing)
    elif scored < FEW_SCORED_TILES:
        out.append(
            f"Too few tiles to compare methods: {contract.splits.get('train', 0)} train and {scored} {score_split} "
            "tiles. The numbers below only check that everything runs on these data."
        )
    return out


def protocol(records: Iterable[Row]) -> list[str]:
    """How each line was evaluated, and which classes had no examples or could not be scored."""
    means = tables.main_rows(records)
    lines = []
    for line in look.sort_lines(means):
        chosen = [r for r in means if look.line(r) == line]
        trained = "; ".join(dict.fromkeys(r.protocol for r in chosen))
        subsets = sorted({r.num_subsets for r in chosen if r.label_fraction < 1})
        parts = [trained, f"pretraining seeds: {max(r.num_pretrainings for r in chosen)}"]
        parts += [f"label subsets below 100 %: {', '.join(map(str, subsets))}"] if subsets else []
        parts += [f"pooling: {chosen[0].pooling}"] if chosen[0].pooling else []
        lines.append(f"{line.label}: {'; '.join(parts)}.")
    if means:
        lines.append(
            "Features are standardized on the unlabeled training split. Intervals: 95 %, bootstrap over scored "
            "examples, label subsets and pretraining seeds, widened for small numbers of subsets and seeds."
        )
    return lines + _class_lines(means)


def _class_lines(means: Sequence[Row]) -> list[str]:
    lines = []
    absent: dict[tuple[str, str], list[str]] = {}
    for r in means:
        names = absent.setdefault((r.task, r.budget.title), [])
        names += [name for name in rows.split_names(r.absent_classes) if name not in names]
    for (task, title), names in absent.items():
        if names:
            labels = ", ".join(look.class_label(name) for name in names)
            lines.append(f"Task {task} with {title} of the labels: some label subset has no example of {labels}.")
    unscored = sorted({name for r in means for name in rows.split_names(r.unscored_classes)})
    if unscored:
        labels = ", ".join(look.class_label(name) for name in unscored)
        lines.append(f"Not scored, for lack of tiles with or without the class: {labels}.")
    return lines
