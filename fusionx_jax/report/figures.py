"""Figures of numbers: label-efficiency curves, losses, features by class, confusions."""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from fusionx_jax import files, methods
from fusionx_jax.evaluate.evaluators import EVALUATORS
from fusionx_jax.evaluate.members import Cost
from fusionx_jax.evaluate.metrics import Metric
from fusionx_jax.evaluate.records import Method
from fusionx_jax.evaluate.rows import Row
from fusionx_jax.report import look, tables
from fusionx_jax.report.look import Line
from fusionx_jax.types import JsonObject, Untyped

_SHOWN_SHARE = 0.05  # of a class, from which a confusion is printed
_PERPLEXITY = 30  # t-SNE's default in scikit-learn


def label_efficiency(
    records: Sequence[Row], metric: Metric, reference: Method, directory: str, name: str
) -> str | None:
    """Metric against label fraction, 95 % intervals as bands, a panel for each modality set; None without rows.

    Sets with zero-filled modalities are drawn only where there are no others.
    """
    means = [r for r in tables.main_rows(records) if (r.kind, r.metric) == (metric.kind, metric.name)]
    chosen = tables.in_figures([r for r in means if not r.budget.shots])
    chosen = [r for r in chosen if not r.zero_filled] or chosen
    if not chosen:
        return None
    plt = look.pyplot()
    panels, lines = look.sort_modality_sets(chosen), look.sort_lines(chosen)
    size = (max(7.0, 4.6 + 2.9 * (len(panels) - 1)), 3.4 + 0.12 * len(lines))
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, sharey=True, squeeze=False, width_ratios=[1.5] + [1] * (len(panels) - 1)
    )
    handles: JsonObject = {}
    for axis, panel in zip(axes[0], panels):
        for line in lines:
            points = [(100 * r.label_fraction, r) for r in chosen if (look.line(r), r.modality_set) == (line, panel)]
            if points:
                handles.setdefault(line.label, _curve(axis, line, points, metric, line.method == reference))
        _label_axis(axis, panel.title, "labels used (%)", {100 * r.label_fraction: "" for r in chosen})
    axes[0][0].set_ylabel(tables.unit_label(metric))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 if len(panels) == 1 else 3)
    figure.suptitle(_title(chosen, metric, "share of labels"))
    return look.save(figure, directory, name)


def _title(records: Sequence[Row], metric: Metric, over: str) -> str:
    datasets = ", ".join(sorted({r.dataset for r in records}))
    simulated = " (simulated data)" if any(r.simulated for r in records) else ""
    return f"{datasets}{simulated}: {metric.label} by {over}, 95 % intervals"


def _curve(
    axis: Untyped, line: Line, points: Sequence[tuple[float, Row]], metric: Metric, emphasized: bool = False
) -> Untyped:
    """Draws the rows of one line against x; the method that the page is about is thicker and in front."""
    ordered = sorted(points, key=lambda point: point[0])
    scale, drawn = tables.factor(metric), methods.presentation(line.method.name)
    x = [position for position, _ in ordered]
    low, high = ([scale * v for v in side] for side in zip(*((r.ci_low, r.ci_high) for _, r in ordered)))
    axis.fill_between(x, low, high, color=drawn.color, alpha=0.15, lw=0)
    return axis.plot(
        x, [scale * r.value for _, r in ordered], color=drawn.color, marker=drawn.marker,
        ls=EVALUATORS[line.evaluator].line_style, markersize=5 if emphasized else 4, lw=2.2 if emphasized else 1.3,
        zorder=3 if emphasized else 2,
    )[0]  # fmt: skip


def _level(axis: Untyped, line: Line, row: Row, metric: Metric) -> Untyped:
    """Draws a horizontal line, for a network without pretraining."""
    color = methods.presentation(line.method.name).color
    return axis.axhline(tables.factor(metric) * row.value, color=color, ls=":", lw=1.3)


def _label_axis(axis: Untyped, title: str, label: str, ticks: Mapping[float, str]) -> None:
    """A logarithmic axis with ticks by position; an empty text is the position itself."""
    axis.set_xscale("log")
    axis.set_xticks(sorted(ticks), [ticks[t] or f"{t:g}" for t in sorted(ticks)])
    axis.minorticks_off()
    axis.set_xlabel(label)
    axis.set_title(title)


def over_steps(records: Sequence[Row], costs: Sequence[Cost], metric: Metric, directory: str, name: str) -> str | None:
    """Metric against pretraining steps, 95 % intervals as bands, a panel for each label fraction.

    A line joins the variants of a method, as one evaluator scores it, that differ in their number of steps (and their
    warm-up) alone; networks without pretraining are horizontal lines. None where no method was pretrained for
    different numbers of steps.
    """
    steps = {Method(c.method, c.changes): float(c.num_steps) for c in costs}
    means = [r for r in tables.main_rows(records) if (r.kind, r.metric) == (metric.kind, metric.name)]
    chosen = [r for r in tables.in_figures(means) if look.line(r).method in steps and not r.budget.shots]
    joined = [r._replace(changes=_without_schedule(r.changes)) for r in chosen]
    curves: dict[Line, list[tuple[float, Row]]] = {line: [] for line in look.sort_lines(joined)}
    for r, variant in zip(chosen, joined):
        curves[look.line(variant)].append((steps[look.line(r).method], r))
    if not any(len({step for step, _ in points} - {0}) > 1 for points in curves.values()):
        return None
    plt = look.pyplot()
    fractions = sorted({r.label_fraction for r in chosen})
    trained = {step for points in curves.values() for step, _ in points} - {0}
    ticks = {step: f"{step / 1000:g}k" if step >= 1000 else "" for step in trained}
    size = (2.4 * len(fractions) + 1.0, 3.0 + 0.12 * len(curves))
    figure, axes = plt.subplots(1, len(fractions), figsize=size, squeeze=False)
    several = len({line.evaluator for line in curves}) > 1
    handles: JsonObject = {}
    for axis, fraction in zip(axes[0], fractions):
        for line, every in curves.items():
            points = [(step, r) for step, r in every if r.label_fraction == fraction]
            if not points:
                continue
            untrained = all(step == 0 for step, _ in points)
            drawn = _level(axis, line, points[0][1], metric) if untrained else _curve(axis, line, points, metric)
            handles.setdefault(line.label if several else look.method_label(line.method), drawn)
        _label_axis(axis, f"{100 * fraction:g} % of the labels", "pretraining steps", ticks)
    axes[0][0].set_ylabel(tables.unit_label(metric))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    figure.suptitle(_title(chosen, metric, "pretraining steps"))
    return look.save(figure, directory, name)


_SCHEDULE = ("num_steps", "optimizer.warmup_steps")


def _without_schedule(changes: str) -> str:
    """The changes of a variant without those of how long it was pretrained."""
    return "/".join(c for c in changes.split("/") if c.partition("=")[0] not in _SCHEDULE)


def loss_curves(path: str, directory: str, simulated: bool) -> str | None:
    """Every training loss by step, and the speed, from `metrics.csv`; None if it has no rows."""
    table = list(csv.DictReader(io.StringIO(files.read_text(path))))
    if not table:
        return None
    plt = look.pyplot()
    steps = np.array([int(r["step"]) for r in table])
    figure, (losses, speed) = plt.subplots(1, 2, figsize=(8.2, 2.8))
    for number, key in enumerate(sorted(k for k in table[0] if k.startswith("loss"))):
        color = look.COLORS[(number - 1) % len(look.COLORS)]  # the sum, which comes first, is black
        label = "weighted sum" if key == "loss" else key.removeprefix("loss_").replace("_", " ")
        losses.plot(steps, [float(r[key]) for r in table], color=color, label=label, lw=1.2)
    losses.set_ylabel("loss")
    losses.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    rates = np.array([float(r["pairs_per_s"]) for r in table])
    speed.plot(steps, rates, color=look.COLORS[0], lw=1.2)
    speed.set_ylim(0, np.nanmax(rates) * 1.15 if np.isfinite(rates).any() else 1)
    for axis in (losses, speed):
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
    speed.set_ylabel("pairs/s")
    waited = np.mean([float(r["input_wait_share"]) for r in table[1:]] or [0.0])
    speed.set_title(f"{100 * waited:.1f} % of the time waiting for input", fontsize=9)
    figure.suptitle(f"pretraining{' (simulated data)' if simulated else ''}", fontsize=9)
    return look.save(figure, directory, "training")


def embedding(
    features: Mapping[Method, Float[np.ndarray, "tiles _dim"]],
    labels: Int[np.ndarray, "tiles"],
    classes: Sequence[str],
    title: str,
    directory: str,
) -> str:
    """t-SNE of each method's features, one panel a method, colored by class.

    "Visualizing Data using t-SNE" (JMLR 2008), as in scikit-learn with a fixed seed and a start from principal axes.
    """
    plt = look.pyplot()
    figure, axes = plt.subplots(1, len(features), figsize=(max(6.0, 4.2 * len(features)), 4.6), squeeze=False)
    colors = plt.get_cmap("tab20")
    handles: JsonObject = {}
    for axis, (method, x) in zip(axes[0], features.items()):
        flat = _tsne(x)
        for k, name in enumerate(classes):
            if (labels == k).any():
                points = axis.scatter(*flat[labels == k].T, s=5, color=colors(k % 20), lw=0)
                handles.setdefault(look.class_label(name), points)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        axis.set_title(look.method_label(method))
    columns = min(6, 3 * len(features))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, markerscale=2.5)
    figure.suptitle(title)
    return look.save(figure, directory, "embedding")


def _tsne(features: Float[np.ndarray, "tiles dim"]) -> Float[np.ndarray, "tiles 2"]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    x = PCA(min(30, *x.shape), random_state=0).fit_transform(x)  # 30 axes, as in the paper's section 4.2
    return TSNE(random_state=0, init="pca", perplexity=min(_PERPLEXITY, max(2, len(x) // 4))).fit_transform(x)


def confusion(
    counts: Mapping[Method, Int[np.ndarray, "classes classes"]], classes: Sequence[str], title: str, directory: str
) -> str:
    """Confusion matrices of methods, each true class (row) as shares of its examples."""
    plt = look.pyplot()
    size = 1.6 + 0.27 * len(classes)
    figure, axes = plt.subplots(1, len(counts), figsize=(size * len(counts) + 0.8, size + 1.6), squeeze=False)
    names = [look.class_label(c) for c in classes]
    for axis, (method, matrix) in zip(axes[0], counts.items()):
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        drawn = axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
        axis.grid(False)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), names if axis is axes[0][0] else [], fontsize=7)
        axis.set_title(look.method_label(method), fontsize=9)
        axis.set_xlabel("predicted")
        for i, j in zip(*np.nonzero(share >= _SHOWN_SHARE)):
            color = "white" if share[i, j] > 0.6 else "black"
            axis.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=5.5, color=color)
    axes[0][0].set_ylabel("true")
    figure.colorbar(drawn, ax=axes[0].tolist(), shrink=0.7, label="share of the true class")
    figure.suptitle(title)
    return look.save(figure, directory, "confusion")
