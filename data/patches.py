"""What the data sets of ready-cut patches share: a list of patches by split, read one by one.

A builder lists its patches (cheap: names and labels) and gives a module-level function that reads one. Everything else,
from command-line options to label encoding, is here.
"""

import argparse
import csv
import dataclasses
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.archive import Archive
from data.raster import squares
from data.raster.grid import RESAMPLINGS
from data.source import SPLITS, BadTile, Description, LeftOut, evenly, fingerprint, scene_labels
from fusionx_jax import modalities
from fusionx_jax.contract import IGNORE_LABEL, Task
from fusionx_jax.errors import InputError
from fusionx_jax.types import Example, Untyped


class Patch(NamedTuple):
    """A patch to read: the key with which `Reader` finds its files, its class numbers, the scene it was cut from, and,
    if patches are cut into smaller tiles, the upper left corner (row, column) of the tile."""

    id: str
    where: tuple[Untyped, ...]
    classes: tuple[int, ...] = ()
    group: str = ""
    corner: tuple[int, int] | None = None


class Options(NamedTuple):
    """Options that every builder has."""

    resampling: str
    s2_offset: float
    most_missing: float


PIXELS = "label_pixel"
Reader = Callable[[Archive, Patch, Options], Example]
"""Reads one patch: modalities as physical [H, W, C] with NaN for missing pixels, and as far as the files give them
"location", pixel labels and "remarks" (what the files declare that was applied)."""


def add_arguments(parser: argparse.ArgumentParser, raw: str) -> None:
    """The options that builders of patches share; `raw` says what --raw should hold."""
    parser.add_argument("--raw", required=True, metavar="DIR", help=raw)
    parser.add_argument("--num_tiles", type=int, default=None, help="keep this many of all patches, evenly spread")
    parser.add_argument(
        "--max_failures", type=float, default=0.01, help="share of patches that may be unusable (default 0.01)"
    )
    parser.add_argument(
        "--resampling", choices=RESAMPLINGS, default="bilinear",
        help="resampling of 20 m and 60 m bands to 10 m (default bilinear)",
    )  # fmt: skip
    parser.add_argument(
        "--s2_offset", type=float, default=0.0,
        help="offset added to Sentinel-2 digital numbers: -1000 from processing baseline 04.00 on (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--most_missing", type=float, default=0.5,
        help="share of a patch's pixels that may lack data before it is left out (default 0.5)",
    )  # fmt: skip


def options(args: argparse.Namespace) -> Options:
    if not 0 <= args.most_missing < 1:
        raise InputError(f"--most_missing is {args.most_missing:g}; it is a share of pixels, from 0 to below 1.")
    return Options(args.resampling, args.s2_offset, args.most_missing)


@dataclasses.dataclass(frozen=True)
class PatchSource:
    """A `Source` of listed patches."""

    description: Description
    archive: Archive
    patches: Mapping[str, Sequence[Patch]]
    read: Reader
    options: Options
    unusable: tuple[LeftOut, ...] = ()
    total: int = 0  # all listed patches, also unusable ones and those that num_tiles drops
    cover: float | None = None  # with pixel labels: scene labels are the classes of at least this share

    def describe(self) -> Description:
        return self.description

    def splits(self) -> Mapping[str, int]:
        return {s: len(p) for s, p in self.patches.items()}

    def left_out(self) -> Sequence[LeftOut]:
        return self.unusable

    def listed(self) -> int:
        return self.total

    def example(self, split: str, index: int) -> Example:
        patch = self.patches[split][index]
        out = dict(_read_once(self, patch))
        images = [feature for feature, _, _ in self.description.features()]
        if patch.corner is not None:
            (row, column), size = patch.corner, self.description.tile_size
            for name in (*images, PIXELS):
                if name in out:
                    out[name] = out[name][row : row + size, column : column + size]
        for name in images:
            if name in self.description.modalities or name in out:
                squares.require_data(out[name], f"{patch.id} ({name})", self.options.most_missing)
        kinds = {t.kind: t for t in self.description.tasks.values()}
        if PIXELS in out:
            if not (out[PIXELS] != IGNORE_LABEL).any():
                raise BadTile("no labels", f"{patch.id} has no labeled pixel")
            if self.cover is not None:
                number = len(kinds["pixel"].classes)
                out["label_multi"], out["label_single"] = scene_labels(out[PIXELS], number, self.cover)
        if "multi" in kinds and "label_multi" not in out:
            out["label_multi"] = np.isin(np.arange(len(kinds["multi"].classes)), patch.classes).astype(np.uint8)
        if "single" in kinds and "label_single" not in out:
            out["label_single"] = patch.classes[0]
        return {**out, "id": patch.id, "group": patch.group}


_last: tuple[Untyped, Example] | None = None  # a worker's last patch: the tiles cut from it follow one another


def _read_once(source: PatchSource, patch: Patch) -> Example:
    global _last
    if patch.corner is None:
        return source.read(source.archive, patch, source.options)
    key = (source.archive.path, patch.where, source.options)
    if _last is None or _last[0] != key:
        _last = (key, source.read(source.archive, patch, source.options))
    return _last[1]


def cut(by_split: Mapping[str, Sequence[Patch]], whole: int, size: int) -> dict[str, list[Patch]]:
    """Patches of `whole` pixels as tiles of `size` pixels, row by row; the remainder is dropped.

    Raises:
      InputError: parts would be larger than the patch, or very small.
    """
    if not 8 <= size <= whole:
        raise InputError(
            f"--tile_size is {size}; patches are {whole} pixels wide, and parts of 8 to {whole} can be cut."
        )
    if size == whole:
        return {s: list(p) for s, p in by_split.items()}
    corners = [(r, c) for r in range(0, whole - size + 1, size) for c in range(0, whole - size + 1, size)]
    return {
        s: [p._replace(id=f"{p.id}_r{r}_c{c}", corner=(r, c)) for p in members for r, c in corners]
        for s, members in by_split.items()
    }


def make(
    args: argparse.Namespace,
    archive: Archive,
    patches: Mapping[str, Sequence[Patch]],
    read: Reader,
    unusable: Iterable[LeftOut] = (),
    cover: float | None = None,
    **description: Untyped,
) -> PatchSource:
    """The source of a list of patches; `source_version` is completed with what the options change.

    Raises:
      InputError: a split is empty, or an option is out of range.
    """
    patches = {s: tuple(patches[s]) for s in SPLITS if patches.get(s)}
    total = sum(len(p) for p in patches.values())
    unusable = tuple({entry.id: entry for entry in reversed(list(unusable))}.values())  # the first reason counts
    listed = total + len(unusable)
    if not total:
        first = f"; the first problem: {unusable[-1].detail}" if unusable else ""
        raise InputError(
            f"{args.raw} holds no complete pair of {description['name']}{first}. data/NAME/README.md shows the "
            "expected layout."
        )
    if args.num_tiles is not None:
        if args.num_tiles < 2:
            raise InputError(f"--num_tiles is {args.num_tiles}; at least 2 are needed.")
        share = min(1.0, args.num_tiles / total)
        patches = {s: tuple(p[i] for i in evenly(len(p), max(1, round(share * len(p))))) for s, p in patches.items()}
        total = sum(len(p) for p in patches.values())
    chosen = options(args)
    description["source_version"] = (
        f"{description['source_version']}, {total} patches, {chosen.resampling} resampling, "
        f"s2_offset {chosen.s2_offset:g} ({fingerprint(chosen, description['split_origin'], *patches.items())})"
    )
    return PatchSource(
        Description(simulated=False, **description), archive, patches, read, chosen, unusable, listed, cover
    )


def read_sensor(
    archive: Archive,
    sensor: modalities.Modality,
    files: Sequence[str],
    size: int,
    chosen: Options,
    indexes: Sequence[int] | None = None,
) -> squares.Bands:
    """A sensor's bands as the data set delivers them: single-band files, or the bands `indexes` of one.

    Sentinel-1 backscatter is in dB; Sentinel-2 digital numbers are reflectance x 10^4 once the offset is applied.
    """
    paths = [archive.file(f) for f in files]
    bands = squares.read_bands(paths, size, chosen.resampling, sensor=sensor, indexes=indexes)
    return bands._replace(values=bands.values + chosen.s2_offset) if sensor.unit != "dB" else bands


def as_example(sensors: Mapping[str, squares.Bands]) -> Example:
    """The part of an example that files give: values by modality, the location of the last, and remarks on files."""
    *_, last = sensors.values()
    remarks = tuple(f"{name}: {remark}" for name, bands in sensors.items() for remark in bands.remarks)
    return {**{name: bands.values for name, bands in sensors.items()}, "location": last.location, "remarks": remarks}


def band_files(folder: str, stem: str, modality: modalities.Modality) -> list[str]:
    return [f"{folder}/{stem}_{band}.tif" for band in modality.band_names]


def read_table(path: str, what: str) -> list[list[str]]:
    """Rows of a CSV or plain list without header; blanks, carriage returns and empty lines removed.

    Raises:
      InputError: it is missing or empty.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = [[cell.strip() for cell in row] for row in csv.reader(f) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as {what} ({error}).") from error
    if not rows:
        raise InputError(f"{path} is empty; it must hold {what}.")
    return rows


def read_splits(folder: str, names: Mapping[str, Sequence[str]], what: str) -> dict[str, list[list[str]]]:
    """Rows of one list a split from `folder`; `names[split]` are the file names it may have.

    Raises:
      InputError: a list is missing, or an id is in two splits.
    """
    out: dict[str, list[list[str]]] = {}
    for split, candidates in names.items():
        found = next((c for c in candidates if os.path.isfile(os.path.join(folder, c))), None)
        if found is None:
            raise InputError(f"{folder} has no {' or '.join(candidates)}; --splits must hold {what}.")
        out[split] = read_table(os.path.join(folder, found), what)
    seen: dict[str, str] = {}
    for split, rows in out.items():
        for row in rows:
            if seen.setdefault(row[0], split) != split:
                raise InputError(
                    f"{row[0]} is in both {seen[row[0]]} and {split} of {folder}; splits must be disjoint."
                )
    return out


def by_lists(
    listed: Mapping[str, Sequence[str]], found: Mapping[str, Patch], available: Container[str], where: str
) -> tuple[dict[str, list[Patch]], list[LeftOut]]:
    """Patches by split as lists name them, and the listed names that are not in `available`."""
    by_split = {s: [found[n] for n in names if n in found] for s, names in listed.items()}
    missing = [n for names in listed.values() for n in names if n not in available]
    return by_split, [LeftOut(n, "missing patch", f"{n} is in the split lists but not in {where}") for n in missing]


def split_by_hash(patches: Sequence[Patch], fractions: Mapping[str, float], by_group: bool) -> dict[str, list[Patch]]:
    """Splits by a hash of the group or id, for sets without official lists: the same on every machine and order.

    Args:
      fractions: share of each split, in the order train, val, test; splits may be left out. Small sets get at least one
        patch (or group) in each.
    """
    import hashlib

    keys = sorted({p.group if by_group else p.id for p in patches}, key=lambda k: hashlib.sha256(k.encode()).digest())
    names = [s for s in SPLITS if s in fractions]
    edges = (np.cumsum([fractions[s] for s in names]) / sum(fractions.values()) * len(keys)).round().astype(int)
    split_of = {key: names[int(np.searchsorted(edges[:-1], i, side="right"))] for i, key in enumerate(keys)}
    if len(set(split_of.values())) < len(names):  # so few that a share rounds to nothing
        split_of |= dict(zip(keys, [s for s in ("train", "test", "val") if s in names]))
    out: dict[str, list[Patch]] = {s: [] for s in SPLITS}
    for p in patches:
        out[split_of[p.group if by_group else p.id]].append(p)
    return out


def pixel_tasks(classes: Sequence[str]) -> dict[str, Task]:
    """Pixel labels, and the scene labels made of them."""
    return {
        "multi": Task("label_multi", "multi", tuple(classes)),
        "single": Task("label_single", "single", tuple(classes)),
        "pixel": Task(PIXELS, "pixel", tuple(classes)),
    }
