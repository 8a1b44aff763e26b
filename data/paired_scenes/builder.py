"""Scenes of several sensors, brought to one grid and cut into tiles without neighbors across splits.

A small YAML describes the files (see terramesh.yaml and sen1floods11.yaml beside this file):

    name: my_area                     # of the prepared set
    grid: s2                          # optional: the pixel grid of the tiles; by default that with the finest pixels
    modalities:
      s1: {sensor: sentinel1_rtc, file: "{scene}/S1.tif", unit: dB}       # or unit: linear, converted
      s2: {sensor: sentinel2_l2a, file: "{scene}/S2.tif", unit: reflectance_1e4, nodata: [0, 65535], add: -1000}
      dem: {sensor: custom, file: "{scene}/dem.npy", unit: m, level: DEM, bands: [height], scale: 0.1, offset: -500,
            grid_of: s2}              # a file without a coordinate system
    labels: {file: "{scene}/labels.tif", classes: {1: water, 2: land}}    # optional; other values are unlabeled; of
                                      # pictures, classes are colors: {"#0000ff": water, "#00ff00": land}
    dates: [before, after]            # optional: what {date} in the modalities' patterns stands for, first date first
    groups: {town: [north, south]}    # optional: scenes that stay in one split; or a pattern of names, "*_T{group}_*"
    split: {by: block, block: 3, seed: 0}                                 # or by: scene, or train: [...], test: [...]

`{scene}` stands for the scene's name, `*` for any letters. `bands: {B02: "{scene}/*_B02.tif", …}` names a file for each
band instead of `file:`. Bands are matched by name (from `bands:` in file order, or from the file's band descriptions)
and brought into the sensor's order. `unit = number * scale`, and `add` is added in the sensor's unit. Files on other
grids are resampled to that of the scene: `resampling` is bilinear, cubic or nearest; finer pixels are averaged,
backscatter as linear power. Labels take the nearest pixel; several values may name one class; with `optional: true`
scenes may lack labels, and their tiles are unlabeled. Classes that cover at least the share `cover` (0.05) of the
labeled pixels label a tile. With `change: true` the labels say what changed between two `dates`; the first class is
that of no change. Splitting by block leaves out the tiles that touch another split's: neighbors are never in different
splits. Scenes that overlap count as one place.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from data.paired_scenes.files import Found, Paths, find_scenes
from data.paired_scenes.footprints import place_scenes
from data.paired_scenes.scenes import Scene, check_scene, open_scene
from data.paired_scenes.spec import LabelSpec, Spec, read_spec
from data.paired_scenes.splits import Tile, assign_splits
from data.raster.file import Grid
from data.raster.grid import pixel_size_m
from data.source import Description, LeftOut, evenly, fingerprint, scene_labels
from fusionx_jax.contract import IGNORE_LABEL, Task
from fusionx_jax.errors import InputError
from fusionx_jax.types import Example, Untyped

_DEFAULT_GSD_M = 10.0  # of files without a coordinate system


def _state(path: str) -> tuple[int, int]:
    """Size and time of change of a file."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


def _digest(path: str) -> tuple[str]:
    """A hash of a file's content."""
    with open(path, "rb") as f:
        return (hashlib.file_digest(f, "sha256").hexdigest(),)


_FINGERPRINTS: Mapping[str, Callable[[str], tuple[Untyped, ...]]] = {"content": _digest, "time": _state}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", required=True, metavar="DIR", help="folder that holds the scenes")
    parser.add_argument("--spec", metavar="FILE", help="YAML that describes the files (default RAW/scenes.yaml)")
    parser.add_argument("--tile_size", type=int, default=64, help="tile side in pixels (default 64)")
    parser.add_argument("--num_tiles", type=int, default=None, help="keep at most this many tiles, evenly spread")
    parser.add_argument(
        "--most_missing", type=float, default=0.5,
        help="share of a tile's pixels that may lack data in a modality before it is left out (default 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--skip_incomplete", action="store_true", help="leave out scenes that lack a file, instead of stopping"
    )
    parser.add_argument(
        "--fingerprint", choices=sorted(_FINGERPRINTS), default="time",
        help="how changed files are noticed: by size and time of change, or by their content (default time)",
    )  # fmt: skip


def make_source(args: argparse.Namespace) -> "PairedScenes":
    """Reads the YAML, finds the scenes and lists their usable tiles.

    Raises:
      InputError: a file or the YAML is missing or wrong; the message names it.
    """
    check_folder(args.raw)
    spec = read_spec(args.spec or os.path.join(args.raw, "scenes.yaml"))
    return list_tiles(spec, find(spec, args), args)


def check_folder(raw: str) -> None:
    """Refuses a folder of scenes that does not exist."""
    if not os.path.isdir(raw):
        raise InputError(f"There is no folder {raw}; --raw must name the folder that holds the scenes.")


def find(spec: Spec, args: argparse.Namespace) -> Found:
    """The scenes of `spec`.

    Raises:
      InputError: an option is out of range, or as `find_scenes`.
    """
    if args.tile_size < 8:
        raise InputError(f"--tile_size is {args.tile_size}; tiles of at least 8 pixels are needed.")
    if not 0 <= args.most_missing < 1:
        raise InputError(f"--most_missing is {args.most_missing:g}; it is a share of pixels, from 0 to below 1.")
    return find_scenes(spec, os.path.abspath(args.raw), args.skip_incomplete)


def list_tiles(spec: Spec, found: Found, args: argparse.Namespace) -> "PairedScenes":
    """Lists the usable tiles of scenes, with the options of `args` (all but `spec`).

    Raises:
      InputError: as `make_source`.
    """
    scenes, incomplete = found
    usable: list[Tile] = []
    sparse: list[LeftOut] = []
    label_values: collections.Counter[float] = collections.Counter()
    remarks: dict[str, list[str]] = {}
    grids: dict[str, Grid | None] = {}
    for scene in tqdm(scenes, desc="checking scenes", unit="scene", disable=not sys.stderr.isatty()):
        checked = check_scene(spec, scenes[scene], scene, args.tile_size, args.most_missing)
        usable += checked.tiles
        sparse += checked.sparse
        label_values.update(checked.unnamed)
        grids[scene] = checked.grid
        for remark in checked.remarks:
            remarks.setdefault(remark, []).append(scene)
    if not usable:
        first = f" ({sparse[0].id}: {sparse[0].detail})" if sparse else ""
        raise InputError(
            f"None of the {len(scenes)} scenes in {args.raw} gives a tile of {args.tile_size} pixels with data in "
            f"every modality{first}; check the units (power of zero or less has no decibels) and the no-data values, "
            "use a smaller --tile_size, or allow a larger share with --most_missing."
        )
    unnamed = sum(label_values.values())
    if unnamed:
        written = spec.labels.written if spec.labels else str
        values = ", ".join(written(v) for v in sorted(label_values, key=lambda v: -label_values[v])[:5])
        remarks[f"labels: {unnamed} pixels have values that name no class (most often {values})"] = list(scenes)
    if args.num_tiles is not None:
        if args.num_tiles < 2:
            raise InputError(f"--num_tiles is {args.num_tiles}; at least 2 are needed.")
        usable = [usable[i] for i in evenly(len(usable), args.num_tiles)]
    unknown = sorted({s for members in spec.groups.values() for s in members} - set(scenes) - set(incomplete))
    if unknown:
        raise InputError(f"{spec.path}: `groups` names the scene {unknown[0]}, which is not in {args.raw}.")
    places, overlaps = place_scenes(grids, spec.members(list(scenes)), whole_scenes=spec.split.by != "block")
    for remark in overlaps:
        remarks[remark] = list(scenes)
    by_split = assign_splits(spec.split, usable, args.tile_size, places)
    dropped = len(usable) - sum(len(t) for t in by_split.values())
    return PairedScenes(
        spec=spec,
        raw=os.path.abspath(args.raw),
        tile_size=args.tile_size,
        tiles=by_split,
        scenes=scenes,
        group_of={s: p.group for s, p in places.items()},
        dropped=dropped,
        gsd_m=_one_size(spec, grids),
        sparse=tuple(sparse),
        notes=_notes(remarks, len(scenes)),
        fingerprint=args.fingerprint,
    )


def _one_size(spec: Spec, grids: Mapping[str, Grid | None]) -> float:
    """The pixel size of all scenes, in meters.

    Raises:
      InputError: scenes differ by more than a tenth.
    """
    sizes = {s: pixel_size_m(g) if g else spec.gsd_m or _DEFAULT_GSD_M for s, g in grids.items()}
    smallest, largest = min(sizes, key=lambda s: sizes[s]), max(sizes, key=lambda s: sizes[s])
    if sizes[largest] > 1.1 * sizes[smallest]:
        raise InputError(
            f"Scene {smallest} has pixels of {sizes[smallest]:.3g} m and scene {largest} of {sizes[largest]:.3g} m "
            f"(from {spec.path}); the scenes of a set need one pixel size."
        )
    return float(f"{np.median(list(sizes.values())):.3g}")


def _notes(remarks: Mapping[str, Sequence[str]], num_scenes: int) -> tuple[str, ...]:
    """Prints what was applied to the files of the scenes, and returns it for the contract."""
    notes = []
    for remark, names in remarks.items():
        where = "all scenes" if len(names) == num_scenes else f"{len(names)} scene(s), first {names[0]}"
        notes.append(f"{remark} ({where}).")
        print(notes[-1], file=sys.stderr)
    return tuple(notes)


@dataclasses.dataclass(frozen=True)
class PairedScenes:
    """Tiles of a folder of scenes. `dropped` counts usable tiles that belong to no split."""

    spec: Spec
    raw: str
    tile_size: int
    tiles: Mapping[str, tuple[Tile, ...]]
    scenes: Mapping[str, Paths]
    group_of: Mapping[str, str]
    dropped: int
    gsd_m: float
    sparse: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    fingerprint: str

    def describe(self) -> Description:
        split = self.spec.split
        how = "the spec's lists of scenes" if split.by == "list" else split.by
        why = "beside another split's" if how == "block" else "of scenes that no list names"
        guard = f"; {self.dropped} tiles {why} left out" if self.dropped else ""
        total = sum(len(t) for t in self.tiles.values())
        return Description(
            name=self.spec.name,
            simulated=False,
            modalities=self.spec.sensors,
            acquisitions=self.spec.acquisitions,
            gsd_m=self.gsd_m,
            tile_size=self.tile_size,
            tasks=_tasks(self.spec.labels),
            split_origin=f"by {how}, seed {split.seed}{guard}",
            license=self.spec.license,
            citation=self.spec.citation,
            source_version=(
                f"{len(self.scenes)} scenes of {os.path.basename(self.raw)} described by "
                f"{os.path.basename(self.spec.path)}, {total} tiles of {self.tile_size} px, split by {how} "
                f"({fingerprint(dataclasses.replace(self.spec, path=''), sorted(self.tiles.items()), self._states)})"
            ),
            notes=self.notes,
            has_location=True,
            has_group=True,
        )

    @functools.cached_property
    def _states(self) -> list[tuple[Untyped, ...]]:
        """Path and state of every file: changed pixels under the same name are another set."""
        state = _FINGERPRINTS[self.fingerprint]
        paths = sorted({path for paths in self.scenes.values() for path in paths.values()})
        return [(os.path.relpath(p, self.raw), *state(p)) for p in paths]

    def splits(self) -> Mapping[str, int]:
        return {s: len(t) for s, t in self.tiles.items()}

    def left_out(self) -> Sequence[LeftOut]:
        return self.sparse

    def listed(self) -> int:
        return sum(len(t) for t in self.tiles.values()) + len(self.sparse)

    def example(self, split: str, index: int) -> Example:
        tile = self.tiles[split][index]
        place = (tile.row, tile.column, self.tile_size)
        scene = _open_once(self.spec, self.scenes[tile.scene], tile.scene)
        out: Example = {"id": tile.id, "group": self.group_of[tile.scene]}
        out |= {m: scene.window(m, *place) for m in self.spec.rasters}
        if self.spec.labels:
            pixels = scene.labels(*place)
            out |= _tile_labels(pixels, self.spec.labels)
        return out | {"location": scene.center(*place)}


def _tasks(labels: LabelSpec | None) -> dict[str, Task]:
    if labels is None:
        return {}
    if labels.change:
        return {
            "change": Task("label_change", "multi", labels.classes[1:], acquisitions=2),
            "change_pixel": Task("label_pixel", "pixel", labels.classes, acquisitions=2),
        }
    return {kind: Task(f"label_{kind}", kind, labels.classes) for kind in ("multi", "single", "pixel")}


def _tile_labels(pixels: np.ndarray, labels: LabelSpec) -> Example:
    """The label features of a tile, from its pixels."""
    multi, single = scene_labels(pixels, len(labels.classes), labels.cover)
    if (pixels == IGNORE_LABEL).all():
        multi, single = np.full_like(multi, IGNORE_LABEL), IGNORE_LABEL
    by_tile = {"label_change": multi[1:]} if labels.change else {"label_multi": multi, "label_single": single}
    return {"label_pixel": pixels, **by_tile}


_last: tuple[Untyped, contextlib.ExitStack, Scene] | None = None  # a worker's open scene: its tiles follow one another


def _open_once(spec: Spec, paths: Paths, name: str) -> Scene:
    global _last
    key = (spec, name, [_state(path) for path in paths.values()])
    if _last is None or _last[0] != key:
        if _last is not None:
            _last[1].close()
        stack = contextlib.ExitStack()
        _last = (key, stack, stack.enter_context(open_scene(spec, paths, name)))
    return _last[2]
