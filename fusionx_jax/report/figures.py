"""The figures of a run: label-efficiency curve, losses, reconstructions."""

import csv
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax import losses, masking, modalities, preprocess
from fusionx_jax.evaluate import rows as rows_lib
from fusionx_jax.models import layers
from fusionx_jax.prepared import sets
from fusionx_jax.report import look
from fusionx_jax.training.objective import MaskedModel


def label_efficiency(
    rows: Sequence[rows_lib.Row], metric: str, directory: str, name: str, panels: Sequence[str] | None = None
) -> str | None:
    """Metric against label fraction, one panel per set of modalities shown, 95 % intervals as bands; None without
    rows."""
    plt = look.pyplot()
    chosen = [r for r in rows if r.metric == metric and r.seed == rows_lib.ALL_SEEDS and not r.label.endswith("shot")]
    panels = panels or sorted({r.modalities for r in chosen}, key=lambda m: (-m.count("+"), m))
    chosen = [r for r in chosen if r.modalities in panels]
    if not chosen:
        return None
    lines = look.lines_of(chosen)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(max(7.0, 4.6 + 2.9 * (len(panels) - 1)), 3.4 + 0.12 * len(lines)), sharey=True,
        squeeze=False, width_ratios=[1.5] + [1] * (len(panels) - 1),
    )  # fmt: skip
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes[0], panels):
        for method, evaluator in lines:
            line = sorted(
                (r for r in chosen if (r.method, r.modalities, r.evaluator) == (method, panel, evaluator)),
                key=lambda r: r.label_fraction,
            )
            if not line:
                continue
            x = np.array([100 * r.label_fraction for r in line])
            drawn = look.look(method)
            own = method == "fusionx"
            handles[look.line_name(method, evaluator)] = axis.plot(
                x, [r.value for r in line], marker=drawn.marker, markersize=5 if own else 4, color=drawn.color,
                lw=2.2 if own else 1.3, ls=look.EVALUATOR_LINES.get(evaluator, "-."), zorder=3 if own else 2,
            )[0]  # fmt: skip
            axis.fill_between(
                x, [r.ci_low for r in line], [r.ci_high for r in line], color=drawn.color, alpha=0.15, lw=0
            )
        axis.set_xscale("log")
        ticks = sorted({100 * r.label_fraction for r in chosen})
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel("labels used (%)")
        axis.set_title(panel.replace("+", " + ").upper())
    axes[0][0].set_ylabel(look.METRIC_NAMES.get(metric, metric))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 if len(panels) == 1 else 3)
    names = ", ".join(sorted({r.dataset for r in chosen}))
    simulated = " (simulated data)" if any(r.simulated for r in chosen) else ""
    figure.suptitle(f"{names}{simulated}: value of few labels, 95 % intervals")
    return look.save(figure, directory, name)


def loss_curves(path: str, directory: str, simulated: bool) -> str | None:
    """Training losses by step from `metrics.csv`; None if there are no rows."""
    with open(path, newline="", encoding="utf-8") as f:
        table = list(csv.DictReader(f))
    if not table:
        return None
    plt = look.pyplot()
    steps = np.array([int(r["step"]) for r in table])
    names = [k for k in table[0] if k.startswith("loss")]
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 2.8))
    for key, color in zip(sorted(names), ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")):
        values = np.array([float(r[key]) for r in table])
        label = {"loss": "sum, weighted", "loss_contrast": "InfoNCE"}.get(
            key, f"{key.removeprefix('loss_')}, squared error"
        )
        axes[0].plot(steps, values, color=color, label=label, lw=1.2)
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("loss")
    axes[0].legend()
    rates = np.array([float(r["pairs_per_s"]) for r in table])
    axes[1].plot(steps, rates, color="#0072B2", lw=1.2)
    axes[1].set_ylim(0, np.nanmax(rates) * 1.15 if np.isfinite(rates).any() else 1)
    axes[1].set_xlabel("step")
    axes[1].set_ylabel("pairs/s")
    waited = np.mean([float(r["input_wait_share"]) for r in table[1:]] or [0.0])
    axes[1].set_title(f"{100 * waited:.1f} % of the time waiting for input", fontsize=9)
    figure.suptitle(f"pretraining{' (simulated data)' if simulated else ''}", fontsize=9)
    return look.save(figure, directory, "training")


def reconstructions(
    model,
    params,
    normalizer: preprocess.Normalizer,
    prepared: sets.Readable,
    weights_contract: Mapping[str, contract_lib.ModalityContract],
    strategy: str,
    options: Mapping[str, Any],
    ratios: Mapping[str, float],
    directory: str,
    count: int = 5,
) -> str:
    """Test tiles of every modality: true, masked, rebuilt (hidden patches predicted, visible ones kept).

    With a normalized target each hidden patch takes its level and contrast from the true one; with "raw" or "both"
    nothing is taken from it.
    """
    plt = look.pyplot()
    names = list(model.config.names)
    split = "test" if prepared.contract.splits.get("test") else "train"
    size = prepared.size(split)
    index = spread(size, count)
    count = len(index)
    wire = prepared.read(split, index, names)
    p = model.config.patch_size
    out, masks, patches, valid = jax.jit(
        lambda params, wire: MaskedModel(
            model, normalizer, masking.strategy(strategy, options), ratios, views=None
        ).forward(params, wire, jax.random.key(0))
    )(params, wire)
    figure, axes = plt.subplots(
        count, 3 * len(names), figsize=(1.55 * 3 * len(names), 1.6 * count + 0.4), squeeze=False
    )
    order = sorted(names, key=lambda n: -len(weights_contract[n].bands))  # the sensor people read most easily first
    for j, name in enumerate(order):
        m = weights_contract[name]
        height, width = (math.ceil(s / p) * p for s in wire[name].shape[1:3])
        true, at = np.asarray(patches[name]), np.asarray(masks[name].hidden)[..., None]
        own = np.take_along_axis(true, at, axis=1)
        has = None if valid is None else jnp.take_along_axis(valid[name], at, axis=1)
        pixels = losses.undo_normalization(out.predicted[name], jnp.asarray(own), model.config.target, has)
        hidden, rebuilt = np.zeros((count, true.shape[1], 1), bool), true.copy()
        counted = masks[name].hidden_ok
        counted = True if counted is None else np.asarray(counted)[..., None]
        np.put_along_axis(hidden, at, counted, axis=1)
        np.put_along_axis(rebuilt, at, np.where(counted, pixels, own), axis=1)
        for kind, content in enumerate((true, true, rebuilt)):
            image = np.asarray(layers.unpatchify(content, p, height, width))
            physical = np.asarray(normalizer.undo(name, image))
            drawn = modalities.compose(physical, m.bands, m.composites())
            if valid is not None:
                empty = ~np.asarray(layers.unpatchify(valid[name], p, height, width)).all(-1)
                drawn = np.where(empty[..., None], 0.5, drawn)
            if kind == 1:
                shade = np.repeat(hidden, p * p, axis=2).reshape(count, -1, p * p)
                cover = np.asarray(layers.unpatchify(shade.astype(np.float32), p, height, width)) > 0.5
                drawn = np.where(cover, 0.82, drawn)
            for row in range(count):
                axis = axes[row][3 * j + kind]
                _show(axis, drawn[row])
                if row == 0:
                    composite = m.composites()[0].name if m.composites() else "first bands"
                    title = ("true", "masked", "rebuilt")[kind]
                    axis.set_title(f"{name} ({composite})\n{title}" if kind == 0 else title, fontsize=8)
    simulated = " (simulated)" if prepared.contract.simulated else ""
    shown = ", ".join(f"{n} {100 * ratios[n]:.0f} %" for n in order)
    figure.suptitle(
        f"{prepared.contract.name}{simulated}, {split} split; {strategy} masking, hidden: {shown}", fontsize=9
    )
    return look.save(figure, directory, "reconstructions")


def _show(axis, picture: np.ndarray) -> None:
    """A picture without the furniture of a plot."""
    axis.imshow(picture, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def cross_predictions(
    model,
    params,
    normalizer: preprocess.Normalizer,
    prepared: sets.Readable,
    weights_contract: Mapping[str, contract_lib.ModalityContract],
    directory: str,
    count: int = 5,
) -> str | None:
    """Each sensor drawn from the others alone, all of whose patches are shown; None for a target without levels."""
    if model.config.target == "normalized":
        return None
    plt = look.pyplot()
    names = list(model.config.names)
    split = "test" if prepared.contract.splits.get("test") else "train"
    index = spread(prepared.size(split), count)
    wire = prepared.read(split, index, names)
    p = model.config.patch_size

    @jax.jit
    def predict(params, wire):
        images, _ = normalizer(preprocess.pad_to_multiple(wire, p, normalizer.nodata))
        patches = {n: layers.patchify(x, p) for n, x in images.items()}
        every = {n: jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]) for n, x in patches.items()}
        none = jnp.zeros((len(index), 0), int)
        out = {}
        for name in names:
            others = {n: x for n, x in images.items() if n != name}
            masks = {n: masking.Mask(*((none, x) if n == name else (x, none)), None) for n, x in every.items()}
            predicted = model.apply({"params": params}, others, masks).predicted[name]
            out[name] = losses.undo_normalization(predicted, patches[name], model.config.target)
        return patches, out

    patches, predicted = predict(params, wire)
    figure, axes = plt.subplots(
        len(index), 2 * len(names), figsize=(1.7 * 2 * len(names), 1.6 * len(index) + 0.4), squeeze=False
    )
    for j, name in enumerate(names):
        m = weights_contract[name]
        height, width = (math.ceil(s / p) * p for s in wire[name].shape[1:3])
        others = " + ".join(n for n in names if n != name)
        for kind, content in enumerate((patches[name], predicted[name])):
            image = np.asarray(layers.unpatchify(np.asarray(content), p, height, width))
            drawn = modalities.compose(np.asarray(normalizer.undo(name, image)), m.bands, m.composites())
            for row in range(len(index)):
                _show(axes[row][2 * j + kind], drawn[row])
                if row == 0:
                    axes[row][2 * j + kind].set_title(
                        f"{name}, true" if kind == 0 else f"{name} from {others}", fontsize=8
                    )
    figure.suptitle(f"{prepared.contract.title}, {split} split: each sensor predicted from the other", fontsize=9)
    return look.save(figure, directory, "cross_predictions")


def embedding(
    points: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str], title: str, directory: str
) -> str:
    """t-SNE of each method's features [N, D], one panel a method, colored by class.

    "Visualizing Data using t-SNE" (JMLR 2008), as in scikit-learn with a fixed seed and a start from principal axes.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    plt = look.pyplot()
    figure, axes = plt.subplots(1, len(points), figsize=(4.2 * len(points), 4.6), squeeze=False)
    colors = plt.get_cmap("tab20")
    for axis, (method, x) in zip(axes[0], points.items()):
        x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
        x = PCA(min(30, *x.shape), random_state=0).fit_transform(x)
        flat = TSNE(random_state=0, init="pca", perplexity=min(30, max(2, len(x) // 4))).fit_transform(x)
        for k, name in enumerate(classes):
            own = labels == k
            if own.any():
                axis.scatter(*flat[own].T, s=5, color=colors(k % 20), label=name.replace("_", " "), lw=0)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        axis.set_title(look.look(method).name)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, markerscale=2.5)
    figure.suptitle(title)
    return look.save(figure, directory, "embedding")


def confusion(counts: Mapping[str, np.ndarray], classes: Sequence[str], title: str, directory: str) -> str:
    """Confusion matrices of methods, each true class (row) as shares of its tiles."""
    plt = look.pyplot()
    size = 1.6 + 0.27 * len(classes)
    figure, axes = plt.subplots(1, len(counts), figsize=(size * len(counts) + 0.8, size + 1.6), squeeze=False)
    names = [c.replace("_", " ") for c in classes]
    for axis, (method, matrix) in zip(axes[0], counts.items()):
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        drawn = axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
        axis.grid(False)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), names if axis is axes[0][0] else [], fontsize=7)
        axis.set_title(look.look(method).name, fontsize=9)
        axis.set_xlabel("called")
        for i, j in zip(*np.nonzero(share >= 0.05)):
            color = "white" if share[i, j] > 0.6 else "black"
            axis.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=5.5, color=color)
    axes[0][0].set_ylabel("true")
    figure.colorbar(drawn, ax=axes[0].tolist(), shrink=0.7, label="share of the true class")
    figure.suptitle(title)
    return look.save(figure, directory, "confusion")
