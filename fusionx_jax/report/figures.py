"""The figures of a run: label-efficiency curve, losses, reconstructions."""

import csv
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax import losses, masking, modalities, preprocess, pretrain, tiles
from fusionx_jax.evaluate import results
from fusionx_jax.models import layers
from fusionx_jax.report import style


def label_efficiency(rows: Sequence[results.Row], metric: str, directory: str, name: str) -> str:
    """Metric against label fraction, one panel per set of modalities shown, 95 % intervals as bands."""
    plt = style.pyplot()
    chosen = [r for r in rows if r.metric == metric and r.seed == results.ALL_SEEDS]
    panels = sorted({r.modalities for r in chosen}, key=lambda m: (-m.count("+"), m))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(max(7.0, 4.6 + 2.9 * (len(panels) - 1)), 3.6), sharey=True, squeeze=False,
        width_ratios=[1.5] + [1] * (len(panels) - 1),
    )  # fmt: skip
    simulated = any(r.simulated for r in chosen)
    for axis, panel in zip(axes[0], panels):
        for method in [m for m in style.METHOD_NAMES if any(r.method == m for r in chosen)]:
            for i, protocol in enumerate(_protocols(chosen, method, panel)):
                line = sorted(
                    (r for r in chosen if (r.method, r.modalities, _family(r)) == (method, panel, protocol)),
                    key=lambda r: r.label_fraction,
                )
                x = np.array([100 * r.label_fraction for r in line])
                y = np.array([r.value for r in line])
                label = style.METHOD_NAMES[method] + (f" ({protocol})" if i else "")
                colour = style.METHOD_COLOURS[method]
                axis.plot(
                    x, y, marker=style.METHOD_MARKERS[method], markersize=4, color=colour, label=label, lw=1.6,
                    ls="--" if i else "-",
                )  # fmt: skip
                axis.fill_between(
                    x, [r.ci_low for r in line], [r.ci_high for r in line], color=colour, alpha=0.18, lw=0
                )
        axis.set_xscale("log")
        ticks = sorted({100 * r.label_fraction for r in chosen})
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel("labels used (%)")
        axis.set_title(panel.replace("+", " + ").upper())
    axes[0][0].set_ylabel(style.METRIC_NAMES.get(metric, metric))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    sets = ", ".join(sorted({r.dataset for r in chosen}))
    figure.suptitle(f"{sets}{' (simulated data)' if simulated else ''}: value of few labels, 95 % intervals")
    return style.save(figure, directory, name)


def _family(row: results.Row) -> str:
    """What distinguishes protocols of one method: how the strength was chosen (steps vary with the labels)."""
    return "validation-selected" if "strength by validation" in row.protocol else "cv-selected"


def _protocols(rows, method, panel) -> list[str]:
    return sorted({_family(r) for r in rows if (r.method, r.modalities) == (method, panel)})


def loss_curves(path: str, directory: str, simulated: bool) -> str | None:
    """Training losses by step from `metrics.csv`; None if there are no rows."""
    with open(path, newline="", encoding="utf-8") as f:
        table = list(csv.DictReader(f))
    if not table:
        return None
    plt = style.pyplot()
    steps = np.array([int(r["step"]) for r in table])
    names = [k for k in table[0] if k.startswith("loss")]
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 2.8))
    for key, colour in zip(sorted(names), ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")):
        values = np.array([float(r[key]) for r in table])
        label = "sum, weighted" if key == "loss" else key.removeprefix("loss_")
        axes[0].plot(steps, values, color=colour, label=label, lw=1.2)
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("squared error on hidden patches")
    axes[0].legend()
    rates = np.array([float(r["pairs_per_s"]) for r in table])
    axes[1].plot(steps, rates, color="#0072B2", lw=1.2)
    axes[1].set_ylim(0, np.nanmax(rates) * 1.15 if np.isfinite(rates).any() else 1)
    axes[1].set_xlabel("step")
    axes[1].set_ylabel("pairs/s")
    waited = np.mean([float(r["input_wait_share"]) for r in table[1:]] or [0.0])
    axes[1].set_title(f"{100 * waited:.1f} % of the time waiting for input", fontsize=9)
    figure.suptitle(f"pretraining{' (simulated data)' if simulated else ''}", fontsize=9)
    return style.save(figure, directory, "training")


def reconstructions(
    model,
    params,
    normaliser: preprocess.Normaliser,
    prepared: tiles.PreparedSet,
    weights_contract: Mapping[str, contract_lib.ModalityContract],
    strategy: str,
    ratios: Mapping[str, float],
    directory: str,
    count: int = 5,
) -> str:
    """Test tiles of every modality: true, masked, rebuilt (hidden patches predicted, visible ones kept).

    With a normalised target each hidden patch takes its level and contrast from the true one; with "raw" or "both"
    nothing is taken from it.
    """
    plt = style.pyplot()
    names = list(model.config.names)
    split = "test" if prepared.contract.splits.get("test") else "train"
    size = prepared.size(split)
    index = tiles.spread(size, count)
    count = len(index)
    wire = prepared.read(split, index, names)
    p = model.config.patch_size
    out, masks, patches, valid = jax.jit(
        lambda params, wire: pretrain.forward(
            model, params, normaliser, wire, masking.strategy(strategy), ratios, jax.random.key(0)
        )
    )(params, wire)
    predicted = out.predicted
    figure, axes = plt.subplots(
        count, 3 * len(names), figsize=(1.55 * 3 * len(names), 1.6 * count + 0.4), squeeze=False
    )
    order = sorted(names, key=lambda n: -len(weights_contract[n].bands))  # the sensor people read most easily first
    for j, name in enumerate(order):
        m = weights_contract[name]
        height, width = (math.ceil(s / p) * p for s in wire[name].shape[1:3])
        pixels = losses.undo_normalisation(
            predicted[name], patches[name], model.config.target, None if valid is None else valid[name]
        )
        hidden = np.zeros((count, patches[name].shape[1], 1), bool)
        counted = masks[name].hidden_ok
        counted = True if counted is None else np.asarray(counted)[..., None]
        np.put_along_axis(hidden, np.asarray(masks[name].hidden)[..., None], counted, axis=1)
        rebuilt = np.where(hidden, np.asarray(pixels), np.asarray(patches[name]))
        for kind, content in enumerate((patches[name], patches[name], rebuilt)):
            image = np.asarray(layers.unpatchify(np.asarray(content), p, height, width))
            physical = np.asarray(normaliser.undo(name, image))
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
                axis.imshow(drawn[row], interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.grid(False)
                for spine in axis.spines.values():
                    spine.set_visible(False)
                if row == 0:
                    composite = m.composites()[0].name if m.composites() else "first bands"
                    title = ("true", "masked", "rebuilt")[kind]
                    axis.set_title(f"{name} ({composite})\n{title}" if kind == 0 else title, fontsize=8)
    simulated = " (simulated)" if prepared.contract.simulated else ""
    shown = ", ".join(f"{n} {100 * ratios[n]:.0f} %" for n in order)
    figure.suptitle(
        f"{prepared.contract.name}{simulated}, {split} split; {strategy} masking, hidden: {shown}", fontsize=9
    )
    return style.save(figure, directory, "reconstructions")
