"""One look for every figure and page: colours that colour-blind readers can tell apart, plain axes, named methods."""

import base64
import os
from typing import Any

import matplotlib

from fusionx_jax import files

METHOD_NAMES = {
    "fusionx": "FusionX-Net (frozen, linear probe)",
    "untrained": "same encoder, untrained (frozen, linear probe)",
    "band_statistics": "band mean and deviation (linear probe)",
    "supervised": "same network from scratch, labels only",
}
# Okabe & Ito's palette.
METHOD_COLOURS = {
    "fusionx": "#0072B2",
    "untrained": "#7F7F7F",
    "band_statistics": "#E69F00",
    "supervised": "#CC79A7",
}
METHOD_MARKERS = {"fusionx": "o", "untrained": "s", "band_statistics": "^", "supervised": "D"}
METRIC_NAMES = {
    "macro_map": "macro mAP",
    "micro_map": "micro mAP",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "top1": "top-1 accuracy",
    "balanced_accuracy": "balanced accuracy",
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


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; a value that the template asks for and does not get is an error."""
    import jinja2

    loader = jinja2.PackageLoader("fusionx_jax.report", ".")
    return (
        jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        .get_template(template)
        .render(**values)
    )


def write_page(path: str, html: str) -> None:
    """Writes a page under its name only when complete."""
    with files.replacing(path) as f:
        f.write(html)
