"""The YAML that describes a folder of co-registered scenes, checked key by key."""

import dataclasses
import os
import re
from collections.abc import Collection, Container, Mapping

from data import yaml_reader
from data.raster.grid import RESAMPLINGS
from data.source import SPLITS
from data.yaml_reader import Node
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.contract import IGNORE_LABEL, acquisition
from fusionx_jax.errors import InputError
from fusionx_jax.modalities import Modality

_UNITS = {"dB": ("dB", "linear"), "reflectance_1e4": ("reflectance_1e4", "reflectance")}
_COLOR = r"#[0-9a-fA-F]{6}"
DEFAULT_COVER = 0.05
DEFAULT_FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}

_Files = tuple[tuple[tuple[str, ...] | None, str], ...]  # the bands of each file, and its pattern


@dataclasses.dataclass(frozen=True)
class RasterSpec:
    """The files of one modality.

    Attributes:
      sensor: the modality that the files are converted to; its name is the key in the YAML.
      files: pattern of each file's path below the scenes' folder, with `{scene}` for the scene's name, and its band
        names in file order; None if the files name them.
      unit: unit of the numbers in the files.
      all_bands: names of all bands of the sensor, of which `sensor` may have a part.
      resampling: how values come to the scene's grid: "nearest", "bilinear" or "cubic".
      grid_of: modality on whose pixel grid files without coordinate system lie.
      nodata: values of pixels without data; empty if the files declare them.
      scale, add: `unit = number * scale` before its conversion to the sensor's unit, to which `add` is added.
    """

    sensor: Modality
    files: _Files
    unit: str
    all_bands: tuple[str, ...]
    nodata: tuple[float, ...]
    scale: float
    add: float
    resampling: str
    grid_of: str | None


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """Label rasters.

    Attributes:
      pattern: path of a scene's raster.
      values: raster values that name a class; of a picture with three bands, `red << 16 | green << 8 | blue`.
      numbers: the class of each value, as its number in `classes`; several values may mean one class.
      classes: name of each class.
      grid_of: modality on whose pixel grid rasters without coordinate system lie.
      optional: whether scenes may lack their raster.
      colored: whether the rasters are pictures whose colors are the classes.
      change: whether the labels say what changed from the first date to the second.
      cover: smallest share of the labeled pixels with which a class labels a tile.
    """

    pattern: str
    values: tuple[int, ...]
    numbers: tuple[int, ...]
    classes: tuple[str, ...]
    grid_of: str | None
    optional: bool
    colored: bool = False
    change: bool = False
    cover: float = DEFAULT_COVER

    def written(self, value: float) -> str:
        """A raster value as the YAML writes it."""
        return f"#{int(value):06x}" if self.colored else f"{value:g}"


@dataclasses.dataclass(frozen=True)
class SplitSpec:
    """How tiles are assigned to splits.

    Attributes:
      by: "scene", "block", or "list".
      block: side of a block in tiles.
      fractions: share of each split, by scene or by block.
      scenes: names of the scenes of each split, with "list".
    """

    by: str = "scene"
    block: int = 4
    seed: int = 0
    fractions: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    scenes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Spec:
    """The YAML, checked.

    Attributes:
      rasters: by feature: a modality has one for each date, see `contract.acquisition`.
      dates: what `{date}` stands for, from the first to the last; empty for scenes of one date.
      labels: None without labels.
      grid: the modality whose pixel grid the scenes are brought to; None: that with the finest pixels.
      groups: names of scenes that stay in one split, by the name of their group.
      group_pattern: pattern of scene names whose part at `{group}` names their group; "" without one.
      gsd_m: pixel size of files without a coordinate system, in meters.
    """

    path: str
    name: str
    rasters: Mapping[str, RasterSpec]
    labels: LabelSpec | None
    split: SplitSpec
    groups: Mapping[str, tuple[str, ...]]
    grid: str | None
    gsd_m: float | None
    license: str
    citation: str
    dates: tuple[str, ...] = ()
    group_pattern: str = ""

    @property
    def sensors(self) -> dict[str, Modality]:
        """The sensor of each modality."""
        return {r.sensor.name: r.sensor for r in self.rasters.values()}

    @property
    def acquisitions(self) -> dict[str, int]:
        """The number of dates of the modalities that have several."""
        counts = {m: sum(r.sensor.name == m for r in self.rasters.values()) for m in self.sensors}
        return {m: n for m, n in counts.items() if n > 1}

    def members(self, scenes: Collection[str]) -> dict[str, list[str]]:
        """Those of `scenes` that stay in one split, by the name of their group."""
        if not self.group_pattern:
            return {group: [s for s in members if s in scenes] for group, members in self.groups.items()}
        before, after = (".*?".join(map(re.escape, p.split("*"))) for p in self.group_pattern.split("{group}"))
        found: dict[str, list[str]] = {}
        for scene in scenes:
            if match := re.fullmatch(f"{before}(.+?){after}", scene):
                found.setdefault(match[1], []).append(scene)
        return found

    def patterns(self) -> list[str]:
        """The patterns of all files of a scene."""
        labels = [self.labels.pattern] if self.labels else []
        return list(dict.fromkeys([pattern for r in self.rasters.values() for _, pattern in r.files] + labels))


def read_spec(path: str) -> Spec:
    """Reads and checks a YAML description.

    Raises:
      InputError: the file is missing or not YAML, or a key is missing, unknown or wrong; the message names the line.
    """
    try:
        root = yaml_reader.read(path)
    except FileNotFoundError as error:
        raise InputError(
            f"There is no file {path}; describe the scenes there (example: data/paired_scenes/terramesh.yaml) or give "
            "--spec."
        ) from error
    keys = root.mapping(
        ["modalities"], ["citation", "dates", "grid", "groups", "gsd_m", "labels", "license", "name", "split"]
    )
    name = keys["name"].text() if "name" in keys else "paired_scenes"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        keys["name"].refuse(f"is {name!r}; use lower-case letters, digits and underscores.")
    nodes = keys["modalities"].entries()
    single = {m: _raster_spec(m, node, nodes) for m, node in nodes.items()}
    if not single:
        keys["modalities"].refuse("is empty; it must describe at least one modality.")
    dates = _dates(keys["dates"]) if "dates" in keys else ()
    rasters = _dated(single, dates, keys.get("dates", root))
    by_name = "groups" in keys and not keys["groups"].is_text()
    return Spec(
        path=path,
        name=name,
        rasters=rasters,
        labels=_label_spec(keys["labels"], rasters, dates) if "labels" in keys else None,
        split=_split_spec(keys["split"]) if "split" in keys else SplitSpec(),
        groups=_groups(keys["groups"]) if by_name else {},
        grid=_modality_name(keys["grid"], rasters) if "grid" in keys else None,
        gsd_m=_positive(keys["gsd_m"]) if "gsd_m" in keys else None,
        license=keys["license"].text() if "license" in keys else "not stated",
        citation=keys["citation"].text() if "citation" in keys else "not stated",
        dates=dates,
        group_pattern=_group_pattern(keys["groups"]) if "groups" in keys and not by_name else "",
    )


_DATE = "{date}"


def _dates(node: Node) -> tuple[str, ...]:
    dates = tuple(n.text() for n in node.sequence())
    if len(dates) < 2 or len(set(dates)) < len(dates):
        node.refuse(
            f"is {', '.join(dates) or 'empty'}; it must list two or more different texts, the first date first."
        )
    return dates


def _dated(rasters: Mapping[str, RasterSpec], dates: tuple[str, ...], node: Node) -> dict[str, RasterSpec]:
    """The rasters by feature: those whose patterns have `{date}` once for each date."""
    out = {}
    for name, raster in rasters.items():
        patterns = [pattern for _, pattern in raster.files]
        dated = [_DATE in pattern for pattern in patterns]
        if any(dated) and not all(dated):
            node.refuse(f"needs {_DATE} in all patterns of {name} or in none of them.")
        if any(dated) and not dates:
            node.refuse(f"has patterns with {_DATE}, but lacks `dates:`, which lists what it stands for.")
        for number, date in enumerate(dates if any(dated) else ("",)):
            files = tuple((bands, pattern.replace(_DATE, date)) for bands, pattern in raster.files)
            out[acquisition(name, number)] = dataclasses.replace(raster, files=files)
    if dates and len(out) == len(rasters):
        node.refuse(f"is given, but no pattern has {_DATE}.")
    return out


def band_name(written: str) -> str:
    """A band's name as the product specification writes it: B1 becomes B01."""
    match = re.fullmatch(r"B(\d)", written)
    return f"B0{match[1]}" if match else written


def _positive(node: Node) -> float:
    value = node.number()
    if not value > 0:
        node.refuse(f"is {value:g}; it must be positive.")
    return value


def _pattern(node: Node) -> str:
    pattern = node.text()
    if "{scene}" not in pattern:
        node.refuse(f"is {pattern!r}; it must contain {{scene}}, which stands for a scene's name.")
    if os.path.isabs(pattern) or ".." in pattern.split("/"):
        node.refuse(f"is {pattern!r}; it must be a path inside the folder of the scenes.")
    return pattern


def _groups(node: Node) -> dict[str, tuple[str, ...]]:
    out = {name: tuple(n.text() for n in child.sequence()) for name, child in node.entries().items()}
    scenes = [s for members in out.values() for s in members]
    twice = sorted({s for s in scenes if scenes.count(s) > 1})
    if twice:
        node.refuse(f"names the scene {twice[0]} twice; a scene is in one group.")
    return out


def _group_pattern(node: Node) -> str:
    pattern = node.text()
    if pattern.count("{group}") != 1:
        node.refuse(f"is {pattern!r}; it must list scenes by group, or be a pattern of scene names with one {{group}}.")
    return pattern


def _modality_name(node: Node, modalities: Container[str]) -> str:
    name = node.text()
    if name not in modalities:
        node.refuse(f"is {name!r}; it must name one of the modalities.")
    return name


def _label_spec(node: Node, modalities: Mapping[str, RasterSpec], dates: tuple[str, ...]) -> LabelSpec:
    keys = node.mapping(["file", "classes"], ["change", "cover", "grid_of", "optional"])
    entries = keys["classes"].entries()
    names = tuple(child.text() for child in entries.values())
    if not names:
        keys["classes"].refuse("is empty; it must map raster values to class names.")
    if len(set(names)) > IGNORE_LABEL:
        keys["classes"].refuse(f"has {len(names)} classes; at most {IGNORE_LABEL} are stored (uint8, 255: unlabeled).")
    colored = all(re.fullmatch(_COLOR, text) for text in entries)
    values = []
    for text, child in entries.items():
        if not colored and not re.fullmatch(r"-?\d+", text):
            child.refuse(
                f"is a class of the raster value {text!r}; raster values are whole numbers, or all are colors such as "
                '"#ff0000".'
            )
        values.append(int(text[1:], 16) if colored else int(text))
    if len(set(values)) < len(values):
        keys["classes"].refuse(f"gives two names to one raster value among {', '.join(entries)}.")
    grid_of = _modality_name(keys["grid_of"], modalities) if "grid_of" in keys else None
    optional = keys["optional"].boolean() if "optional" in keys else False
    change = keys["change"].boolean() if "change" in keys else False
    if change and (len(dates) < 2 or any(acquisition(r.sensor.name, 1) not in modalities for r in modalities.values())):
        keys["change"].refuse("needs `dates:` and {date} in the patterns of every modality: it compares two dates.")
    classes = tuple(dict.fromkeys(names))
    numbers = tuple(classes.index(n) for n in names)
    if change and len(classes) < 2:
        keys["classes"].refuse("needs the class of pixels without change first, then what changed.")
    cover = keys["cover"].number() if "cover" in keys else DEFAULT_COVER
    if not 0 <= cover <= 1:
        keys["cover"].refuse(f"is {cover:g}; it is a share of the labeled pixels, from 0 to 1.")
    pattern = _pattern(keys["file"])
    return LabelSpec(pattern, tuple(values), numbers, classes, grid_of, optional, colored, change, cover)


def _split_spec(node: Node) -> SplitSpec:
    keys = node.mapping([], ["by", "block", "fractions", "seed", *SPLITS])
    listed = {s: tuple(n.text() for n in keys[s].sequence()) for s in SPLITS if s in keys}
    if listed:
        others = [k for k in keys if k not in SPLITS]
        if others:
            keys[others[0]].refuse(f"cannot be combined with lists of scenes ({', '.join(listed)}).")
        seen: dict[str, str] = {}
        for split, scenes in listed.items():
            for scene in scenes:
                if scene in seen:
                    keys[split].refuse(f"names the scene {scene} again (it is in {seen[scene]}); name each once.")
                seen[scene] = split
        return SplitSpec(by="list", scenes=listed)
    by = keys["by"].text() if "by" in keys else "scene"
    if by not in ("scene", "block"):
        keys["by"].refuse(f"is {by!r}; it may be scene or block, or list scenes under {', '.join(SPLITS)} instead.")
    block = keys["block"].integer() if "block" in keys else 4
    if block < 1:
        keys["block"].refuse(f"is {block}; it is a number of tiles, at least 1.")
    if "block" in keys and by != "block":
        keys["block"].refuse("applies to `by: block` alone.")
    seed = keys["seed"].integer() if "seed" in keys else 0
    if seed < 0:
        keys["seed"].refuse(f"is {seed}; it must not be negative.")
    fractions = dict(DEFAULT_FRACTIONS)
    if "fractions" in keys:
        given = keys["fractions"].mapping(["train"], [s for s in SPLITS if s != "train"])
        fractions = {s: child.number() for s, child in given.items()}
        for split, value in fractions.items():
            if not 0 <= value < float("inf"):
                given[split].refuse(f"is {value:g}; fractions must not be negative.")
        if not sum(fractions.values()) > 0:
            keys["fractions"].refuse("are all zero.")
    return SplitSpec(by, block, seed, fractions)


_OPTIONAL = ("add", "grid_of", "nodata", "resampling")


def _raster_spec(name: str, node: Node, modalities: Container[str]) -> RasterSpec:
    is_custom = "sensor" in node.entries() and node.entries()["sensor"].text() == "custom"
    if is_custom:  # `scale` and `offset` are those of the prepared set
        keys = node.mapping(["sensor", "unit", "level", "bands", "scale", "offset"], ["file", *_OPTIONAL])
    else:
        keys = node.mapping(["sensor", "unit"], ["file", "bands", "scale", *_OPTIONAL])
    if "bands" in keys and not keys["bands"].is_sequence():  # a file for each band
        if "file" in keys:
            keys["file"].refuse("is given beside files by band; give one of them.")
        by_band = keys["bands"].entries()
        files: _Files = tuple(((band_name(b),), _pattern(child)) for b, child in by_band.items())
        bands = tuple(band_name(b) for b in by_band)
    else:
        bands = tuple(band_name(b.text()) for b in keys["bands"].sequence()) if "bands" in keys else ()
        if "file" not in keys:
            node.refuse("lacks `file:`, or a file for each band under `bands:`.")
        files = ((bands or None, _pattern(keys["file"])),)
    if len(set(bands)) < len(bands):
        keys["bands"].refuse(f"lists a band twice ({', '.join(bands)}).")
    if is_custom:
        sensor, unit, all_bands, scale = _custom_sensor(name, keys, bands), keys["unit"].text(), bands, 1.0
    else:
        sensor, unit = _known_sensor(keys, bands)
        all_bands = modalities_lib.KNOWN[keys["sensor"].text()].band_names
        scale = _nonzero(keys["scale"]) if "scale" in keys else 1.0
    resampling = keys["resampling"].text() if "resampling" in keys else "bilinear"
    if resampling not in RESAMPLINGS:
        keys["resampling"].refuse(f"is {resampling!r}; it may be {', '.join(RESAMPLINGS)}.")
    return RasterSpec(
        dataclasses.replace(sensor, name=name),
        files,
        unit,
        all_bands,
        _nodata(keys["nodata"]) if "nodata" in keys else (),
        scale,
        keys["add"].number() if "add" in keys else 0.0,
        resampling,
        _modality_name(keys["grid_of"], modalities) if "grid_of" in keys else None,
    )


def _nodata(node: Node) -> tuple[float, ...]:
    return tuple(n.number() for n in (node.sequence() if node.is_sequence() else [node]))


def _nonzero(node: Node) -> float:
    value = node.number()
    if not value:
        node.refuse("is 0; it must be another number.")
    return value


def _custom_sensor(name: str, keys: Mapping[str, Node], bands: tuple[str, ...]) -> Modality:
    """A sensor with its own wire encoding: physical = wire * scale + offset."""
    scale, offset = _positive(keys["scale"]), keys["offset"].number()
    return Modality(
        name,
        tuple(modalities_lib.Band(b, float("nan"), float("nan")) for b in bands),
        keys["unit"].text(),
        keys["level"].text(),
        scale,
        offset,
        (offset, offset + scale * (modalities_lib.NODATA - 1)),
    )


def _known_sensor(keys: Mapping[str, Node], bands: tuple[str, ...]) -> tuple[Modality, str]:
    """The sensor with the bands of the files, in its own order, and the unit of the numbers in the files."""
    name, unit = keys["sensor"].text(), keys["unit"].text()
    if name not in modalities_lib.KNOWN:
        keys["sensor"].refuse(f"is {name!r}; it may be {', '.join(modalities_lib.KNOWN)} or custom.")
    sensor = modalities_lib.KNOWN[name]
    allowed = _UNITS[sensor.unit]
    if unit not in allowed:
        keys["unit"].refuse(f"is {unit!r}; state which of {', '.join(allowed)} the files hold.")
    if not bands:
        return sensor, unit
    unknown = [b for b in bands if b not in sensor.band_names]
    if unknown:
        keys["bands"].refuse(f"names {unknown[0]}, but the bands of {name} are {', '.join(sensor.band_names)}.")
    return modalities_lib.subset(sensor, [b for b in sensor.band_names if b in bands]), unit
