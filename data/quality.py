"""What every stored pixel says about its file: shares of missing, clipped and zero pixels, and their limits.

A wrong unit, an undeclared no-data value or a wrong offset shows in these shares, and in no single pixel.
"""

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data.source import Description
from fusionx_jax.errors import InputError
from fusionx_jax.modalities import NODATA, Modality

KINDS = ("missing", "clipped", "zero")
_WORDS = {
    "missing": "have no data",
    "clipped": "lie outside the stored range and were clipped",
    "zero": "are exactly 0 dB",
}
_ADVICE = {
    "missing": "Check the unit (power of zero or less has no decibels) and the no-data values",
    "clipped": "Check the unit, the offset and undeclared no-data values",
    "zero": "0 seems to mean no data: declare it (`nodata: 0` in a YAML), or check the files",
}
_EARLY_TILES = 64  # tiles from which on limits are checked before the set is complete
_MANY_GROUPS = 1000  # from which on shares are not kept by group: sets of a quarter of a million places


@dataclasses.dataclass(frozen=True)
class Limits:
    """Largest share of the pixels of a band, over the whole set, that may be missing, clipped or zero."""

    missing: float = 0.5
    clipped: float = 0.001
    zero: float = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options with which all data sets change the limits."""
    for field in dataclasses.fields(Limits):
        parser.add_argument(
            f"--max_{field.name}", type=float, default=field.default, metavar="SHARE",
            help=f"largest share of a band's pixels that may {_WORDS[field.name].replace('are', 'be')} "
            f"(default {field.default:g})",
        )  # fmt: skip


def limits(args: argparse.Namespace) -> Limits:
    """The limits of the options.

    Raises:
      InputError: one is not a share.
    """
    found = Limits(args.max_missing, args.max_clipped, args.max_zero)
    for kind in KINDS:
        if not 0 <= getattr(found, kind) <= 1:
            raise InputError(f"--max_{kind} is {getattr(found, kind):g}; it is a share of pixels, from 0 to 1.")
    return found


Counts = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
"""By group ("" for all) and modality: rows pixels, missing, clipped and zero, with a number for each band."""


class Counter:
    """Counts the pixels of tiles in physical units before they are stored."""

    def __init__(self, description: Description):
        self._features = description.features()
        self._counts: dict[str, dict[str, np.ndarray]] = {}

    def add(self, tiles: Mapping[str, np.ndarray], group: str) -> None:
        keys = ("", group) if group and (group in self._counts or len(self._counts) < _MANY_GROUPS) else ("",)
        for feature, name, modality in self._features:
            if feature not in tiles:
                continue  # an absent acquisition is no missing pixel
            counted = _count(np.asarray(tiles[feature]), modality)
            for key in keys:
                by_modality = self._counts.setdefault(key, {})
                by_modality[name] = by_modality.get(name, 0) + counted

    def result(self) -> dict[str, dict[str, list[list[float]]]]:
        return {g: {m: c.tolist() for m, c in by_modality.items()} for g, by_modality in self._counts.items()}


def _count(tile: np.ndarray, modality: Modality) -> Float[np.ndarray, "4 bands"]:
    pixels = tile.reshape(-1, tile.shape[-1])
    finite = np.isfinite(pixels)
    # Rounding brings a value half a step outside of the range back into it.
    low, high = modality.offset - modality.scale / 2, modality.offset + modality.scale * (NODATA - 0.5)
    with np.errstate(invalid="ignore"):
        clipped = finite & ((pixels < low) | (pixels > high))
    zero = (pixels == 0) if modality.unit == "dB" else np.zeros_like(finite)
    return np.stack([np.full(pixels.shape[1], len(pixels)), (~finite).sum(0), clipped.sum(0), zero.sum(0)]).astype(
        float
    )


def merge(counts: Iterable[Counts]) -> dict[str, dict[str, np.ndarray]]:
    """The sums of several shards."""
    out: dict[str, dict[str, np.ndarray]] = {}
    for one in counts:
        for group, by_modality in one.items():
            into = out.setdefault(group, {})
            for name, values in by_modality.items():
                into[name] = into.get(name, 0) + np.asarray(values)
    return out


class Share(NamedTuple):
    """A share of the pixels of a modality's worst band, and of its worst group there."""

    modality: str
    kind: str
    band: str
    value: float
    group: str
    group_value: float

    def text(self) -> str:
        worst = f", most in {self.group}: {100 * self.group_value:.3g} %" if self.group else ""
        return f"{100 * self.value:.3g} % of the {self.modality} pixels {_WORDS[self.kind]} (band {self.band}{worst})"


def shares(counts: Iterable[Counts], description: Description) -> list[Share]:
    """The shares that are not zero, by modality and kind."""
    merged = merge(counts)
    out = []
    for name, modality in description.modalities.items():
        total = merged.get("", {}).get(name)
        if total is None:
            continue
        for i, kind in enumerate(KINDS, 1):
            by_band = total[i] / total[0]
            band = int(by_band.argmax())
            if not by_band[band] > 0:
                continue
            groups = {g: float(m[name][i, band] / m[name][0, band]) for g, m in merged.items() if g and name in m}
            worst = max(groups, key=lambda g: groups[g], default="")
            out.append(
                Share(name, kind, modality.band_names[band], float(by_band[band]), worst, groups.get(worst, 0.0))
            )
    return out


def check(counts: Sequence[Counts], description: Description, allowed: Limits, complete: bool) -> list[str]:
    """Sentences on the shares of the pixels written so far.

    Args:
      complete: whether these are all shards; before, a few tiles decide nothing.

    Raises:
      InputError: a share is above its limit.
    """
    side = description.tile_size**2
    pixels = ((c[""][m][0][0], description.acquisitions.get(m, 1)) for c in counts for m in c.get("", {}))
    tiles = max((count / dates for count, dates in pixels), default=0) / side
    found = shares(counts, description)
    if complete or tiles >= _EARLY_TILES:
        for share in found:
            limit = getattr(allowed, share.kind)
            if share.value > limit:
                raise InputError(
                    f"{description.name}: {share.text()}; at most {100 * limit:g} % may. {_ADVICE[share.kind]}; or "
                    f"allow more with --max_{share.kind}."
                )
    return [share.text() for share in found]
