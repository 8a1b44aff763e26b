"""The terminal's table of an evaluation."""

from collections.abc import Sequence

from fusionx_jax.evaluate import metrics
from fusionx_jax.evaluate.evaluators import EVALUATORS
from fusionx_jax.evaluate.rows import MEAN, Row, select


def summary(rows: Sequence[Row]) -> str:
    """The main metric of each method by label budget, with its interval."""
    lines = []
    main = {metrics.main_metric(kind).name for kind in {r.kind for r in rows}}
    means = [r for r in select(rows, level=MEAN, class_name="") if r.metric in main]
    for task, kind, metric in dict.fromkeys((r.task, r.kind, r.metric) for r in means):
        chosen = select(means, task=task, kind=kind, metric=metric)
        budgets = sorted({r.budget for r in chosen}, key=lambda b: b.sort_key)
        label = metrics.find(kind, metric).label
        lines.append(f"{task}, {label} with " + " / ".join(b.title for b in budgets) + " of the labels")
        for key in dict.fromkeys((r.method, r.changes, r.modality_set, r.evaluator) for r in chosen):
            line = {r.budget: r for r in chosen if (r.method, r.changes, r.modality_set, r.evaluator) == key}
            cells = [_cell(line[b]) if b in line else "-" for b in budgets]
            name = "/".join(filter(None, key[:2]))
            lines.append(f"  {name:16} {key[2].title:8} {'  '.join(cells)}  ({EVALUATORS[key[3]].label})")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    return f"{row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
