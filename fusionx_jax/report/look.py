"""One look for all figures and pages: a palette for color-blind readers, plain axes, labels from the registries.

Names of methods, evaluators and metrics come from their registries. A method that is not registered keeps its own name;
an evaluator or metric that is not registered raises.
"""

import base64
import functools
import re
import warnings
from collections.abc import Iterable
from typing import IO, NamedTuple, Protocol, runtime_checkable

import matplotlib
from matplotlib.figure import Figure

from fusionx_jax import files, methods, progress
from fusionx_jax.evaluate.evaluators import EVALUATORS
from fusionx_jax.evaluate.records import Method, ModalitySet
from fusionx_jax.types import Json, Untyped

# Fonts that draw what Matplotlib's own, DejaVu Sans, lacks: Chinese, Japanese, Korean and others.
_FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans", "Arial Unicode MS")

# Okabe & Ito, "Color Universal Design" (2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@runtime_checkable
class Grouped(Protocol):
    """A record of one method, modality set and evaluator: a `rows.Row`, or one of the tables of `compare`."""

    @property
    def method(self) -> str: ...
    @property
    def changes(self) -> str: ...
    @property
    def modalities(self) -> str: ...
    @property
    def zero_filled(self) -> str: ...
    @property
    def evaluator(self) -> str: ...


class Line(NamedTuple):
    """A line of a table or figure: a method as one evaluator scores it."""

    method: Method
    evaluator: str

    @property
    def label(self) -> str:
        """Name for people, e.g. "FusionX-Net (linear probe)"."""
        return f"{method_label(self.method)} ({EVALUATORS[self.evaluator].label})"


def line(record: Grouped) -> Line:
    """The line that a record belongs to."""
    return Line(Method(record.method, record.changes), record.evaluator)


def modality_set(record: Grouped) -> ModalitySet:
    """The modalities of a record."""
    zeros = tuple(record.zero_filled.split("+")) if record.zero_filled else ()
    return ModalitySet(tuple(record.modalities.split("+")), zeros)


def method_label(method: Method) -> str:
    """Name for people; a variant is named after what it changes, e.g. "FusionX-Net: masking=consistent"."""
    drawn = methods.presentation(method.name)
    return f"{drawn.short}: {changes_label(method)}" if method.changes else drawn.label


def changes_label(method: Method) -> str:
    """The config changes of a variant, without the part of the config that they are in."""
    return ", ".join(change.removeprefix("model.") for change in method.changes.split("/"))


def sort_methods(unsorted: Iterable[Method]) -> list[Method]:
    """Registered methods in the registry's order, then others as they came; variants after their method."""
    unique = list(dict.fromkeys(unsorted))
    names = methods.in_table_order(m.name for m in unique)
    return sorted(unique, key=lambda m: (names.index(m.name), bool(m.changes)))


def sort_lines(records: Iterable[Grouped]) -> list[Line]:
    """The lines of some records in the order of tables: by method, then by evaluator.

    Raises:
      InputError: an evaluator is not registered.
    """
    lines = list(dict.fromkeys(line(r) for r in records))
    for each in lines:
        EVALUATORS[each.evaluator]
    order, evaluators = sort_methods(each.method for each in lines), list(EVALUATORS)
    return sorted(lines, key=lambda each: (order.index(each.method), evaluators.index(each.evaluator)))


def sort_modality_sets(records: Iterable[Grouped]) -> list[ModalitySet]:
    """The modality sets of some records, the fullest first, zero-filled ones last."""
    unique = {modality_set(r) for r in records}
    return sorted(unique, key=lambda m: (bool(m.zero_filled), -len(m.available), m))


def class_label(name: str) -> str:
    """A class name for people."""
    return name.replace("_", " ")


def pyplot() -> Untyped:
    """matplotlib without a display, in the style of all figures. Imported late: it takes a second."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    plt.rcParams.update(
        {
            "font.size": 9,
            "font.family": ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "savefig.dpi": 150,
            "figure.constrained_layout.use": True,
            "text.parse_math": False,  # class names and titles may contain dollars
        }
    )
    return plt


class Picture(NamedTuple):
    """A figure on a page: its PNG as a data address, a text for those who cannot see it, and captions."""

    image: str
    alt: str
    caption: str = ""
    heading: str = ""


def save(figure: Figure, directory: str, name: str) -> str:
    """Writes `name`.png, .svg and .pdf, each complete before it gets its name; returns the PNG's path."""
    files.makedirs(directory)
    for kind in ("png", "svg", "pdf"):
        with files.replacing(files.join(directory, f"{name}.{kind}"), "wb") as f:
            _savefig(figure, f, kind)
    pyplot().close(figure)
    return files.join(directory, f"{name}.png")


def _savefig(figure: Figure, file: IO[bytes], kind: str) -> None:
    """Draws a figure; a character that the font lacks is drawn as a box, and said once in a sentence."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(file, format=kind)
    for warning in caught:
        found = re.search(r"Glyph \d+ \((.*)\) missing from font", str(warning.message))
        if found:
            _say_missing_glyph(found[1])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@functools.cache
def _say_missing_glyph(name: str) -> None:
    progress.logger.warning(
        "Figures show a box for the character %s: Matplotlib's font lacks it, and none of %s is installed.",
        name.removeprefix("\\N{").removesuffix("}"),
        ", ".join(_FALLBACK_FONTS),
    )


def embed(path: str) -> str:
    """A PNG as a data address, so that a page is one file."""
    return "data:image/png;base64," + base64.b64encode(files.read_bytes(path)).decode()


def escape_markdown(text: str) -> str:
    """Text that Markdown renders as it is, inside tables too."""
    escaped = "".join(f"\\{c}" if c in "\\|*`$" else c for c in text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


def write(path: str, template: str, **values: Json) -> str:
    """Writes a page or Markdown file from a template of this package under its name only when complete.

    A value that the template asks for and does not get is an error. Returns the path.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fusionx_jax.report", "templates"),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["markdown"] = escape_markdown
    text = environment.get_template(template).render(**values)
    with files.replacing(path) as f:
        f.write(text)
    return path
