"""The YAML that describes a folder of co-registered scenes, checked key by key."""

import dataclasses
import re
from collections.abc import Mapping

from data.source import SPLITS
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.errors import InputError
from fusionx_jax.modalities import Modality
from fusionx_jax.types import Json, JsonObject, Untyped

_KEYS = ("citation", "gsd_m", "labels", "license", "modalities", "name", "split")
_UNITS = {"dB": ("dB", "linear"), "reflectance_1e4": ("reflectance_1e4", "reflectance")}
_CUSTOM_KEYS = ("unit", "level", "bands", "scale", "offset")


@dataclasses.dataclass(frozen=True)
class RasterSpec:
    """The files of one modality.

    Attributes:
      sensor: the modality that the files are converted to; its name is the key in the YAML.
      pattern: path of a scene's file below the scenes' folder, with `{scene}` for the scene's name.
      unit: unit of the numbers in the files.
      bands: band names in file order; None if the files name them.
      nodata: value of pixels without data; None if the files declare it.
      add: added to the value after its conversion to the sensor's unit.
    """

    sensor: Modality
    pattern: str
    unit: str
    bands: tuple[str, ...] | None
    nodata: float | None
    add: float


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """Label rasters: where they are, and the class name of each raster value."""

    pattern: str
    values: tuple[int, ...]
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Spec:
    """The YAML, checked. `split` is the section as written; `labels` is None without labels."""

    path: str
    name: str
    rasters: Mapping[str, RasterSpec]
    labels: LabelSpec | None
    split: Mapping[str, Json]
    gsd_m: float
    license: str
    citation: str


def read_spec(path: str) -> Spec:
    """Reads and checks a YAML description.

    Raises:
      InputError: the file is missing or not YAML, or a key is missing, unknown or wrong.
    """
    raw = _load(path)
    name = str(raw.get("name", "paired_scenes"))
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"{path}: name is {name!r}; use lower-case letters, digits and underscores.")
    return Spec(
        path=path,
        name=name,
        rasters={m: _raster_spec(f"{path}: modality {m}", m, s) for m, s in raw["modalities"].items()},
        labels=_label_spec(path, raw["labels"]) if raw.get("labels") else None,
        split=_split_section(path, raw.get("split") or {"by": "scene"}),
        gsd_m=_number(path, "`gsd_m`", raw.get("gsd_m", 10.0), float),
        license=str(raw.get("license", "not stated")),
        citation=str(raw.get("citation", "not stated")),
    )


def band_name(written: Untyped) -> str:
    """A band's name as the product specification writes it: B1 becomes B01."""
    text = str(written)
    match = re.fullmatch(r"B(\d)", text)
    return f"B0{match[1]}" if match else text


def _load(path: str) -> JsonObject:
    import yaml

    try:
        with open(path, encoding="utf-8") as f:
            raw = yaml.safe_load(f)
    except FileNotFoundError as error:
        raise InputError(
            f"There is no file {path}; describe the scenes there (example: data/paired_scenes/terramesh.yaml) or give "
            "--spec."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("modalities"), dict) or not raw["modalities"]:
        raise InputError(f"{path} must have a `modalities:` section that names a file for each modality.")
    unknown = sorted(set(raw) - set(_KEYS))
    if unknown:
        raise InputError(f"{path} has the unknown key {unknown[0]!r}; the known keys are {', '.join(_KEYS)}.")
    return raw


def _number(where: str, what: str, value: Json, kind: type) -> Json:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {what} is {value!r}; it must be a number.") from error


def _label_spec(path: str, raw: Json) -> LabelSpec:
    classes = raw.get("classes") if isinstance(raw, dict) else None
    if not (isinstance(classes, dict) and classes and "{scene}" in str(raw.get("file", ""))):
        raise InputError(
            f"{path}: `labels:` needs `file:` with {{scene}} in it, and `classes:`, a mapping from raster value to "
            "class name."
        )
    names = tuple(str(c) for c in classes.values())
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two raster values have one class name among {', '.join(names)}; names must differ.")
    return LabelSpec(
        raw["file"], tuple(_number(path, "a raster value under `classes:`", v, int) for v in classes), names
    )


def _split_section(path: str, split: Untyped) -> Mapping[str, Json]:
    fractions = split.get("fractions", {}) if isinstance(split, dict) else None
    if not isinstance(fractions, dict) or set(fractions) - set(SPLITS) or (fractions and "train" not in fractions):
        raise InputError(
            f"{path}: `split:` is {split!r}; write e.g. {{by: block, block: 3, seed: 0}}, with `fractions:` by "
            f"{', '.join(SPLITS)} if they are not to be 0.6, 0.2 and 0.2."
        )
    for key in ("seed", "block"):
        _number(path, f"`split: {key}`", split.get(key, 1), int)
    for name, value in fractions.items():
        if _number(path, f"the fraction of {name}", value, float) < 0:
            raise InputError(f"{path}: the fraction of {name} is {value}; fractions must not be negative.")
    return split


def _raster_spec(where: str, name: str, raw: Json) -> RasterSpec:
    if not isinstance(raw, dict) or "file" not in raw or "sensor" not in raw:
        raise InputError(f"{where} needs `sensor:` and `file:`.")
    if "{scene}" not in str(raw["file"]):
        raise InputError(
            f"{where}: file is {raw['file']!r}; it must contain {{scene}}, which stands for a scene's name."
        )
    bands = tuple(band_name(b) for b in raw["bands"]) if raw.get("bands") else None
    sensor = _custom_sensor(where, name, raw, bands) if raw["sensor"] == "custom" else _known_sensor(where, raw, bands)
    nodata = raw.get("nodata")
    return RasterSpec(
        dataclasses.replace(sensor, name=name),
        raw["file"],
        sensor.unit if raw["sensor"] == "custom" else raw["unit"],
        bands,
        None if nodata is None else _number(where, "`nodata` (a number or nan)", nodata, float),
        _number(where, "`add`", raw.get("add", 0), float),
    )


def _custom_sensor(where: str, name: str, raw: Mapping[str, Json], bands: tuple[str, ...] | None) -> Modality:
    missing = [k for k in _CUSTOM_KEYS if k not in raw]
    if missing or bands is None:
        missing = missing or ["bands"]
        raise InputError(f"{where} is custom and lacks {', '.join(missing)} (physical = wire * scale + offset).")
    scale, offset = (_number(where, f"`{k}`", raw[k], float) for k in ("scale", "offset"))
    return Modality(
        name,
        tuple(modalities_lib.Band(b, float("nan"), float("nan")) for b in bands),
        str(raw["unit"]),
        str(raw["level"]),
        scale,
        offset,
        (offset, offset + scale * (modalities_lib.NODATA - 1)),
    )


def _known_sensor(where: str, raw: Mapping[str, Json], bands: tuple[str, ...] | None) -> Modality:
    if raw["sensor"] not in modalities_lib.KNOWN:
        known = ", ".join(modalities_lib.KNOWN)
        raise InputError(f"{where}: sensor is {raw['sensor']!r}; it may be {known} or custom.")
    sensor = modalities_lib.KNOWN[raw["sensor"]]
    allowed = _UNITS[sensor.unit]
    if raw.get("unit") not in allowed:
        raise InputError(f"{where}: unit is {raw.get('unit')!r}; state which of {', '.join(allowed)} the files hold.")
    if bands is None:
        return sensor
    unknown = [b for b in bands if b not in sensor.band_names]
    if unknown:
        raise InputError(
            f"{where}: {sensor.name} has no band {unknown[0]}; its bands are {', '.join(sensor.band_names)}."
        )
    # Fewer bands than the sensor has are a smaller modality, in the sensor's band order.
    return modalities_lib.subset(sensor, [b for b in sensor.band_names if b in bands])
