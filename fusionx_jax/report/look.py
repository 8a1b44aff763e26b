"""One look for every figure and page: colors that color-blind readers can tell apart, plain axes, named methods."""

import base64
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib

from fusionx_jax import files
from fusionx_jax.evaluate import rows as rows_lib


class Look(NamedTuple):
    """How a method is named and drawn everywhere."""

    name: str
    short: str
    color: str
    marker: str


# Okabe & Ito's palette, then two grays and a brown; known methods in the order of tables.
METHODS = {
    "fusionx": Look("FusionX-Net", "FusionX-Net", "#0072B2", "o"),
    "fusionx_early": Look("FusionX-Net, fused at the first block", "FusionX early", "#003F6B", "h"),
    "mae_s1": Look("MAE, S1 alone", "MAE S1", "#56B4E9", "<"),
    "mae_s2": Look("MAE, S2 alone", "MAE S2", "#009E73", ">"),
    "stacked_mae": Look("MAE, stacked channels", "stacked", "#D55E00", "v"),
    "multimae": Look("MultiMAE-style", "MultiMAE", "#CC79A7", "P"),
    "croma": Look("CROMA-style", "CROMA", "#E69F00", "X"),
    "contrastive": Look("cross-modal InfoNCE", "InfoNCE", "#8C564B", "*"),
    "untrained": Look("same encoder, untrained", "untrained", "#7F7F7F", "s"),
    "band_statistics": Look("band mean and deviation", "bands", "#B8A100", "^"),
    "supervised": Look("same network from scratch, labels only", "scratch", "#000000", "D"),
    "supervised_vit": Look("ViT from scratch, labels only", "ViT scratch", "#000000", "D"),
    "supervised_resnet": Look("ResNet from scratch, labels only", "ResNet scratch", "#4D4D4D", "d"),
}
EVALUATORS = {
    "linear_probe": "linear probe",
    "linear_probe_each": "linear probe, sensors alone too",
    "linear_probe_validation": "linear probe, strength chosen on validation labels",
    "knn": "kNN",
    "finetune": "fine-tuned",
    "scratch": "from scratch, labels only",
    "ridge_cover": "ridge regression of class shares",
    "segment_linear": "linear head",
    "segment_decoder": "light decoder",
}
EVALUATOR_LINES = {"linear_probe": "-", "scratch": "-", "finetune": "--", "knn": ":", "segment_linear": "-"}


def look(method: str) -> Look:
    """Name and drawing of a method; one that is not known keeps its own name."""
    if method in METHODS:
        return METHODS[method]
    return Look(method, method, f"C{sum(map(ord, method)) % 10}", "o")


def line_name(method: str, evaluator: str) -> str:
    """What a line of a figure or table is called."""
    how = EVALUATORS.get(evaluator, evaluator)
    if evaluator == "scratch" and method.startswith("supervised"):
        how = ""  # their names say it
    return look(method).name + (f" ({how})" if how else "")


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods as tables list them: known ones first, then others as they came."""
    found = list(dict.fromkeys(methods))
    return [m for m in METHODS if m in found] + [m for m in found if m not in METHODS]


def lines_of(rows: Iterable[rows_lib.Row]) -> list[tuple[str, str]]:
    """The (method, evaluator) pairs of some rows, in order."""
    pairs = {(r.method, r.evaluator) for r in rows}
    return [(m, e) for m in in_order(m for m, _ in pairs) for e in EVALUATORS if (m, e) in pairs]


METRIC_NAMES = {
    "macro_map": "macro mAP",
    "micro_map": "micro mAP",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "top1": "top-1 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "r2": "R²",
    "rmse": "root mean squared error",
}


def pyplot():
    """matplotlib without a display, in the house style. Imported late: it costs a second."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "savefig.dpi": 150,
            "figure.constrained_layout.use": True,
        }
    )
    return plt


def save(figure, directory: str, name: str) -> str:
    """Writes `name`.png, .svg and .pdf, each complete before it gets its name; returns the PNG's path."""
    os.makedirs(directory, exist_ok=True)
    for kind in ("png", "svg", "pdf"):
        with files.replacing(os.path.join(directory, f"{name}.{kind}"), "wb") as f:
            figure.savefig(f, format=kind)
    pyplot().close(figure)
    return os.path.join(directory, f"{name}.png")


def embed(path: str) -> str:
    """A PNG as a data address, so that a page is one file."""
    with open(path, "rb") as f:
        return "data:image/png;base64," + base64.b64encode(f.read()).decode()


def write(path: str, template: str, **values: Any) -> str:
    """Writes a page or Markdown file from a template of this package under its name only when complete.

    A value that the template asks for and does not get is an error. Returns the path.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fusionx_jax.report", "templates"),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template(template).render(**values)
    with files.replacing(path) as f:
        f.write(text)
    return path
