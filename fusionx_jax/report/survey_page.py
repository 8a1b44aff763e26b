"""The page and figures of `fusionx inspect`; the figure `classes` is the paper's Fig. 2."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from fusionx_jax.contract import Contract
from fusionx_jax.report import look
from fusionx_jax.types import JsonObject

BIN = 32  # wire codes in one histogram bin
_SPLIT_COLORS = ("#0072B2", "#E69F00", "#009E73")


@dataclasses.dataclass
class Survey:
    """Findings about one prepared set.

    Attributes:
      examined: tiles read, by split.
      together: [K, K] tiles with both classes, by multi-label task.
      histograms: [C, bins] pixels by band.
      places: [N, 2] longitude and latitude and the split's number of each tile, where known.
      sheet: tiles to show, with their labels.
    """

    directory: str
    contract: Contract
    examined: dict[str, int]
    together: dict[str, np.ndarray]
    histograms: dict[str, np.ndarray]
    places: np.ndarray
    sheet: list[JsonObject]
    warnings: list[str]


def write(surveys: Sequence[Survey], out: str) -> str:
    """Writes `inspect.html` and `figures/` into `out` and returns the page's path."""
    directory = os.path.join(out, "figures")
    contracts = [s.contract for s in surveys]
    distribution = class_distribution(contracts, directory)
    several = len(surveys) > 1
    suffixes = [f"{i}-{c.name}" if several else c.name for i, c in enumerate(contracts)]
    os.makedirs(out, exist_ok=True)
    return look.write(
        os.path.join(out, "inspect.html"),
        "survey.html",
        title="Prepared sets",
        subtitle=", ".join(f"{c.name}: {sum(c.splits.values())} tiles" for c in contracts),
        distribution=look.embed(distribution) if distribution else None,
        sets=[_section(survey, directory, suffix) for survey, suffix in zip(surveys, suffixes)],
    )


def _section(survey: Survey, directory: str, suffix: str) -> JsonObject:
    """What the template shows of one set."""
    c = survey.contract
    return {
        "name": c.title,
        "warnings": survey.warnings,
        "splits": [{"name": s, "tiles": n, "examined": survey.examined.get(s, 0)} for s, n in c.splits.items()],
        "text": f"{c.source_version}. Splits: {c.split_origin}. License: {c.license}. {c.citation} "
        + " ".join(c.notes),
        "figures": _figures(survey, directory, suffix),
        "tasks": [
            {
                "name": f"{name} ({'pixels' if task.kind == 'pixel' else 'tiles'})",
                "splits": list(task.counts),
                "rows": [
                    {"name": label, "counts": [task.counts[s][k] for s in task.counts]}
                    for k, label in enumerate(task.classes)
                ],
            }
            for name, task in c.tasks.items()
        ],
        "contract": c.to_json(),
    }


def _figures(survey: Survey, directory: str, suffix: str) -> list[dict[str, str]]:
    """Draws the figures of one set; their file names end in `suffix`."""
    figures = [
        _figure(contact_sheet(survey, directory, f"tiles-{suffix}"), "Tiles in every composite, with their labels."),
        _figure(
            histograms(survey, directory, f"bands-{suffix}"),
            "Values of valid pixels (all splits; every fourth row and column), the contract's mean (line) and "
            "deviation (band).",
        ),
    ]
    for task, counts in survey.together.items():
        path = co_occurrence(survey.contract, task, counts, directory, f"together-{suffix}-{task}")
        figures.append(_figure(path, f"Task {task}: share of the row's tiles that also have the column's class."))
    if len(survey.places) and np.isfinite(survey.places[:, :2]).any():
        figures.append(_figure(places(survey, directory, f"places-{suffix}"), "Locations of the tiles, by split."))
    return figures


def _figure(path: str, caption: str) -> dict[str, str]:
    return {"image": look.embed(path), "alt": caption, "caption": caption}


def class_distribution(contracts: Sequence[Contract], directory: str) -> str | None:
    """Share of tiles (or labeled pixels) by class and split, a row for each set; None where no set has labels."""
    labeled = [c for c in contracts if c.tasks]
    if not labeled:
        return None
    plt = look.pyplot()
    unit = {"multi": "tiles with the class", "single": "tiles dominated by it", "pixel": "labeled pixels"}
    widest = max(len(c.tasks) for c in labeled)
    heights = [0.9 + 0.21 * max(len(t.classes) for t in c.tasks.values()) for c in labeled]
    figure, axes = plt.subplots(
        len(labeled), widest, figsize=(3.9 * widest, sum(heights) + 0.4), squeeze=False, height_ratios=heights
    )
    for row, c in zip(axes, labeled):
        for axis in row[len(c.tasks) :]:
            axis.set_visible(False)
        for axis, (name, task) in zip(row, sorted(c.tasks.items())):
            splits = list(c.splits)
            for i, split in enumerate(splits):
                counts = np.array(task.counts[split], float)
                total = counts.sum() if task.kind == "pixel" else c.splits[split]
                place = np.arange(len(counts)) + (i - (len(splits) - 1) / 2) * 0.26
                axis.barh(place, 100 * counts / max(total, 1), 0.25, label=split, color=_SPLIT_COLORS[i % 3])
            names = [k.replace("_", " ") for k in task.classes]
            axis.set_yticks(range(len(names)), [n if len(n) < 34 else n[:32] + "…" for n in names], fontsize=7)
            axis.invert_yaxis()
            axis.set_xlabel(f"% of {unit[task.kind]}")
            axis.set_title(f"{c.title}: {name}")
        row[0].legend()
    return look.save(figure, directory, "classes")


def co_occurrence(c: Contract, task: str, counts: np.ndarray, directory: str, name: str) -> str:
    """How often the column's class occurs with the row's."""
    plt = look.pyplot()
    classes = [k.replace("_", " ") for k in c.tasks[task].classes]
    share = counts / np.maximum(np.diag(counts), 1)[:, None]
    side = 2.2 + 0.3 * len(classes)
    figure, axis = plt.subplots(figsize=(side + 1.2, side))
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    short = [k if len(k) < 28 else k[:26] + "…" for k in classes]
    axis.set_xticks(range(len(classes)), short, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(classes)), short, fontsize=7)
    axis.grid(False)
    for i in range(len(classes)):
        for j in range(len(classes)):
            if share[i, j] >= 0.005 and i != j:
                axis.text(
                    j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=6,
                    color="white" if share[i, j] > 0.55 else "#1c2733",
                )  # fmt: skip
    figure.colorbar(image, shrink=0.7, label="share of tiles")
    axis.set_title(f"{c.title}, {task}")
    return look.save(figure, directory, name)


def histograms(survey: Survey, directory: str, name: str) -> str:
    """One panel a band, in physical units."""
    plt = look.pyplot()
    panels = [(m, i) for m, c in survey.contract.modalities.items() for i in range(len(c.bands))]
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 1.5 * rows + 0.3), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (m, i) in zip(axes.flat, panels):
        c = survey.contract.modalities[m]
        counts = survey.histograms[m][i]
        edges = np.arange(len(counts) + 1) * BIN * c.scale + c.offset
        if counts.sum():
            # As many bins as can be seen: the range that holds all but a thousandth of the pixels, in sixty steps.
            cumulated = np.cumsum(counts) / counts.sum()
            low, high = np.searchsorted(cumulated, [0.0005, 0.9995])
            step = max(1, (high - low) // 60)
            places = np.arange(low, high + 1, step)
            sums = np.add.reduceat(counts[: high + 1], places)
            axis.bar(edges[places], sums, width=step * BIN * c.scale, align="edge", color="#56B4E9", lw=0)
        axis.axvline(c.mean[i], color="#D55E00", lw=1)
        axis.axvspan(c.mean[i] - c.std[i], c.mean[i] + c.std[i], color="#D55E00", alpha=0.12, lw=0)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
        axis.set_title(f"{m} {c.bands[i]} ({'dB' if c.unit == 'dB' else c.unit})", fontsize=7)
    figure.suptitle(survey.contract.title, fontsize=9)
    return look.save(figure, directory, name)


def contact_sheet(survey: Survey, directory: str, name: str) -> str:
    """A row a tile, a column a composite."""
    plt = look.pyplot()
    sheet = survey.sheet
    titles = list(sheet[0]["images"])
    figure, axes = plt.subplots(
        len(sheet), len(titles) + 1, figsize=(1.7 * len(titles) + 2.8, 1.7 * len(sheet) + 0.3), squeeze=False,
        width_ratios=[*([1] * len(titles)), 1.6],
    )  # fmt: skip
    for r, tile in enumerate(sheet):
        for k, title in enumerate(titles):
            axes[r][k].imshow(tile["images"][title], interpolation="nearest")
            if r == 0:
                axes[r][k].set_title(title, fontsize=8)
        words = "\n".join(_wrap(w) for w in (tile["id"], *tile["labels"]))
        axes[r][-1].text(0, 0.5, words, fontsize=6.5, va="center", transform=axes[r][-1].transAxes)
        for axis in axes[r]:
            axis.set_axis_off()
    figure.suptitle(survey.contract.title, fontsize=9)
    return look.save(figure, directory, name)


def _wrap(text: str, width: int = 38) -> str:
    lines, line = [], ""
    for word in text.replace("_", " ").split(" "):
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line][:6])


def places(survey: Survey, directory: str, name: str) -> str:
    """Longitude and latitude of the tiles by split."""
    plt = look.pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    for number, split in enumerate(s for s, n in survey.contract.splits.items() if n):
        mine = survey.places[survey.places[:, 2] == number]
        axis.scatter(mine[:, 0], mine[:, 1], s=7, alpha=0.6, color=_SPLIT_COLORS[number % 3], label=split, lw=0)
    axis.set_xlabel("longitude (°)")
    axis.set_ylabel("latitude (°)")
    axis.legend()
    axis.set_title(survey.contract.title)
    return look.save(figure, directory, name)
