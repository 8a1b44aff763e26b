"""The data contract of a prepared set or a checkpoint, and the check of one against another.

The contract travels as `contract.json` beside a prepared set's shards and inside every checkpoint. A consumer never
guesses: bands are matched by name, unit and level must agree, and the statistics that normalized the training data
go wherever the weights go.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

import numpy as np

from fusionx_jax import modalities as modalities_lib
from fusionx_jax.errors import InputError
from fusionx_jax.types import Json, JsonObject

FILE_NAME = "contract.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ModalityContract:
    """One modality of a data set: what its pixels mean and the statistics that normalize them.

    Attributes:
      bands: band names in wire order.
      unit, level: as in `modalities.Modality`.
      scale, offset: `physical = wire * scale + offset`.
      nodata: wire code of a pixel without data.
      gsd_m: ground sampling distance of the tile grid, meters.
      height, width: tile size, pixels.
      mean, std: per band over valid training pixels, physical unit.
      nodata_fraction: share of pixels without data over all splits (0 lets the model skip validity masks).
      quality: shares of pixels per band that were "missing", "clipped" to the wire's range, or "zero" (0 dB).
      acquisitions: how often a tile holds this modality, at several dates; see `acquisition`. Statistics are of all.
    """

    bands: tuple[str, ...]
    unit: str
    level: str
    scale: float
    offset: float
    nodata: int
    gsd_m: float
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    nodata_fraction: float = 0.0
    quality: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    acquisitions: int = 1

    def composites(self) -> tuple[modalities_lib.Composite, ...]:
        """Ways to draw these bands, from the known sensor whose bands include them (none for others)."""
        for known in modalities_lib.KNOWN.values():
            if set(self.bands) <= set(known.band_names):
                return modalities_lib.subset(known, self.bands).composites
        return ()


@dataclasses.dataclass(frozen=True)
class Task:
    """Labels a prepared set carries: the feature's name, its kind ("multi", "single" or "pixel") and class names.

    `counts[split][class]` is the number of tiles (pixels for "pixel") of that class in that split. The value 255 marks
    unlabeled pixels, and unlabeled tiles (in each class of a "multi" task). A label is read from the first
    `acquisitions` acquisitions of every modality: two for a label of what changed between two dates.
    """

    feature: str
    kind: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    acquisitions: int = 1


IGNORE_LABEL = 255
TASK_KINDS = ("multi", "single", "pixel")
MOST_TASK_ACQUISITIONS = 2  # `encoder.compare` compares two
ACQUIRED = "acquired"
"""The text feature with the dates of a tile's acquisitions, see `Contract.has_dates`."""
_LARGEST_NUMBER = 1e300
_LARGEST_SIDE = 1 << 16  # pixels: a limit against damaged contracts
_MOST_ACQUISITIONS = 1000  # a limit against damaged contracts


def acquisition(modality: str, number: int) -> str:
    """The feature that holds the acquisition `number` (from 0) of a modality: "s1", "s1@2", "s1@3"."""
    return f"{modality}@{number + 1}" if number else modality


def images(modalities: Iterable[str], acquisitions: int) -> list[str]:
    """The features of a tile that hold the given modalities at the first `acquisitions` dates."""
    return [acquisition(name, i) for i in range(acquisitions) for name in modalities]


@dataclasses.dataclass(frozen=True)
class Contract:
    """Description of a data set. See the module docstring.

    `has_dates`: tiles have a text feature `ACQUIRED`, a JSON object with a list by modality that holds a text for each
    acquisition: its date (YYYY-MM-DD) and, after a slash, its orbit, as far as they are known.
    """

    name: str
    simulated: bool
    modalities: Mapping[str, ModalityContract]
    tasks: Mapping[str, Task]
    splits: Mapping[str, int]
    split_origin: str
    license: str
    citation: str
    source_version: str
    notes: tuple[str, ...] = ()
    has_location: bool = False
    group_feature: str | None = None
    has_dates: bool = False

    @property
    def title(self) -> str:
        """The name for figures and tables, in which simulated data are called so."""
        return f"{self.name} (simulated)" if self.simulated else self.name

    def to_dict(self) -> JsonObject:
        return {"format_version": FORMAT_VERSION, **_plain(dataclasses.asdict(self))}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, sort_keys=True) + "\n"

    def features(self) -> dict[str, ModalityContract]:
        """The features of a tile that hold images: one for each acquisition of each modality."""
        return {acquisition(name, i): m for name, m in self.modalities.items() for i in range(m.acquisitions)}


# Keys that contracts leave out where they have this value: sets that were prepared before them keep their hash.
_UNWRITTEN = {"acquisitions": 1, "has_dates": False}


def _plain(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if not (k in _UNWRITTEN and v == _UNWRITTEN[k])}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def from_dict(raw: Mapping[str, Json], where: str) -> Contract:
    """Rebuilds a contract from its JSON form.

    Raises:
      InputError: a key is missing, unknown or of the wrong kind; `where` names the file.
    """
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{where} has contract format {version!r}, this version reads {FORMAT_VERSION}; prepare the set again."
        )
    root = _Reader(raw, where)
    contract = Contract(
        name=root.text("name"),
        simulated=root.boolean("simulated"),
        modalities={name: _modality(node) for name, node in root.objects("modalities").items()},
        tasks={name: _task(node) for name, node in root.objects("tasks").items()},
        splits=_in_order(root.table("splits", _Reader.count)),
        split_origin=root.text("split_origin"),
        license=root.text("license"),
        citation=root.text("citation"),
        source_version=root.text("source_version"),
        notes=root.texts("notes") if "notes" in raw else (),
        has_location=root.boolean("has_location") if "has_location" in raw else False,
        group_feature=root.text("group_feature") if raw.get("group_feature") is not None else None,
        has_dates=root.boolean("has_dates") if "has_dates" in raw else False,
    )
    if not contract.modalities:
        root.refuse("modalities", "must hold at least one modality")
    for name, task in contract.tasks.items():
        fewest = min(m.acquisitions for m in contract.modalities.values())
        if not 1 <= task.acquisitions <= min(fewest, MOST_TASK_ACQUISITIONS):
            root.refuse("tasks", f"must hold labels of acquisitions that every modality has; {name} does not")
    root.finish(("format_version", *(f.name for f in dataclasses.fields(Contract))))
    return contract


def _modality(node: "_Reader") -> ModalityContract:
    bands = node.texts("bands")
    if not bands or len(set(bands)) < len(bands):
        node.refuse("bands", "must be one or more different names")
    out = ModalityContract(
        bands=bands,
        unit=node.text("unit"),
        level=node.text("level"),
        scale=node.number("scale"),
        offset=node.number("offset"),
        nodata=node.count("nodata"),
        gsd_m=node.number("gsd_m"),
        height=node.count("height"),
        width=node.count("width"),
        mean=node.numbers("mean"),
        std=node.numbers("std"),
        nodata_fraction=node.number("nodata_fraction") if "nodata_fraction" in node.raw else 0.0,
        quality=node.table("quality", _Reader.numbers) if "quality" in node.raw else {},
        acquisitions=node.count("acquisitions") if "acquisitions" in node.raw else 1,
    )
    for key in ("mean", "std"):
        if len(getattr(out, key)) != len(bands):
            node.refuse(key, f"must have as many numbers as there are bands ({len(bands)})")
    if not all(s > 0 for s in out.std):
        node.refuse("std", "must be positive")
    if not out.scale > 0:
        node.refuse("scale", "must be positive")
    if not 0 <= out.nodata <= modalities_lib.NODATA:
        node.refuse("nodata", f"must be a code of uint16, from 0 to {modalities_lib.NODATA}")
    for key in ("height", "width"):
        if not 1 <= getattr(out, key) <= _LARGEST_SIDE:
            node.refuse(key, f"must be a number of pixels, from 1 to {_LARGEST_SIDE}")
    if not 0 <= out.nodata_fraction <= 1:
        node.refuse("nodata_fraction", "must be a share, from 0 to 1")
    if not 1 <= out.acquisitions <= _MOST_ACQUISITIONS:
        node.refuse("acquisitions", f"must be a number from 1 to {_MOST_ACQUISITIONS}")
    node.finish(f.name for f in dataclasses.fields(ModalityContract))
    return out


def _task(node: "_Reader") -> Task:
    classes = node.texts("classes")
    counts = _in_order(node.table("counts", _Reader.counts))
    if node.text("kind") not in TASK_KINDS:
        node.refuse("kind", f"must be one of {', '.join(TASK_KINDS)}")
    if not classes or len(set(classes)) < len(classes) or len(classes) > IGNORE_LABEL:
        node.refuse("classes", f"must be 1 to {IGNORE_LABEL} different names")
    if any(len(c) != len(classes) for c in counts.values()):
        node.refuse("counts", f"must have as many numbers as there are classes ({len(classes)})")
    node.finish(f.name for f in dataclasses.fields(Task))
    acquisitions = node.count("acquisitions") if "acquisitions" in node.raw else 1
    return Task(node.text("feature"), node.text("kind"), classes, counts, acquisitions)


class _Reader:
    """Reads a JSON object key by key; anything but the expected kind is an error that names file and key."""

    def __init__(self, raw: Json, where: str, path: str = ""):
        self.where, self._path = where, path
        if not isinstance(raw, Mapping):
            raise self._error(path.rstrip(".") or "the contract", raw, "must be an object")
        self.raw = raw

    def refuse(self, key: str, expected: str) -> NoReturn:
        raise self._error(f"{self._path}{key}", self.raw.get(key), expected)

    def _error(self, key: str, value: Json, expected: str) -> InputError:
        shown = "missing" if value is None else repr(value)[:60]
        return InputError(
            f"{self.where} is not a valid contract: {key} is {shown}, and {expected}; it may have been edited by hand: "
            "prepare the set again."
        )

    def _is(self, key: str, value: Json, kinds: tuple[type, ...], expected: str) -> Json:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self._error(f"{self._path}{key}", value, expected)
        return value

    def text(self, key: str) -> str:
        return self._is(key, self.raw.get(key), (str,), "must be a text")

    def boolean(self, key: str) -> bool:
        return self._is(key, self.raw.get(key), (bool,), "must be true or false")

    def number(self, key: str) -> float:
        return self._number(key, self.raw.get(key))

    def _number(self, key: str, value: Json) -> float:
        number = self._is(key, value, (int, float), "must be a number")
        if abs(number) > _LARGEST_NUMBER or number != number:
            raise self._error(f"{self._path}{key}", value, "must be finite")
        return float(number)

    def count(self, key: str) -> int:
        return self._count(key, self.raw.get(key))

    def _count(self, key: str, value: Json) -> int:
        number = self._is(key, value, (int,), "must be a whole number")
        if number < 0:
            raise self._error(f"{self._path}{key}", value, "must not be negative")
        return number

    def _sequence(self, key: str) -> list[Json]:
        return list(self._is(key, self.raw.get(key), (list, tuple), "must be a list"))

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(self._is(key, v, (str,), "must be a list of texts") for v in self._sequence(key))

    def numbers(self, key: str) -> tuple[float, ...]:
        return tuple(self._number(key, v) for v in self._sequence(key))

    def counts(self, key: str) -> tuple[int, ...]:
        return tuple(self._count(key, v) for v in self._sequence(key))

    def table(self, key: str, read: Callable[["_Reader", str], Json]) -> JsonObject:
        """An object whose values `read`, a method of this class, reads."""
        inner = _Reader(self.raw.get(key), self.where, f"{self._path}{key}.")
        return {name: read(inner, name) for name in inner.raw}

    def objects(self, key: str) -> dict[str, "_Reader"]:
        inner = _Reader(self.raw.get(key), self.where, f"{self._path}{key}.")
        return {name: _Reader(v, self.where, f"{self._path}{key}.{name}.") for name, v in inner.raw.items()}

    def finish(self, known: Iterable[str]) -> None:
        unknown = sorted(set(self.raw) - set(known))
        if unknown:
            raise self._error(f"{self._path}{unknown[0]}", self.raw[unknown[0]], "no key has this name")


def _in_order(by_split: Mapping[str, Json]) -> JsonObject:
    """Splits in the usual order: train, val, test, then others."""
    usual = ("train", "val", "test")
    names = sorted(by_split, key=lambda s: usual.index(s) if s in usual else len(usual))
    return {s: by_split[s] for s in names}


def load(directory: str | os.PathLike) -> Contract:
    """Reads the contract of a prepared set.

    Raises:
      InputError: the folder is missing, is not a prepared set, or its contract is damaged.
    """
    directory = os.fspath(directory)
    path = os.path.join(directory, FILE_NAME)
    if not os.path.isdir(directory):
        raise InputError(
            f"There is no folder {directory}; make a prepared set with `python -m data.prepare NAME --out=DIR`, which "
            "prints the set's directory last."
        )
    if not os.path.isfile(path):
        raise InputError(
            f"{directory} is not a finished prepared set: it has no {FILE_NAME}, which is written last. Run the same "
            "`python -m data.prepare` command again to finish it, or pass the directory that command printed."
        )
    return read(path)


def read(path: str) -> Contract:
    """Reads one contract file.

    Raises:
      InputError: it is damaged.
    """
    try:
        with open(path, encoding="utf-8") as f:
            raw = json.load(f)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); prepare the set again.") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds {type(raw).__name__} instead of an object; prepare the set again.")
    return from_dict(raw, path)


def check_compatible(
    have: Contract,
    want: Mapping[str, ModalityContract],
    *,
    have_name: str,
    want_name: str,
    any_level: bool = False,
) -> None:
    """Refuses data whose bands, unit or level are not those of a checkpoint; only modalities of both are compared.

    `any_level` accepts other processing levels.

    Raises:
      InputError: no modality in common, or one that differs; both sides are named.
    """
    common = [m for m in want if m in have.modalities]
    if not common:
        raise InputError(
            f"{have_name} has the modalities {', '.join(have.modalities)}, but {want_name} was made for "
            f"{', '.join(want)}; nothing matches."
        )
    for name in common:
        h, w = have.modalities[name], want[name]
        missing = [b for b in w.bands if b not in h.bands]
        if missing:
            raise InputError(
                f"Modality {name}: {have_name} lacks the band {', '.join(missing)} (it has {', '.join(h.bands)}) that "
                f"{want_name} was trained on; prepare it with those bands."
            )
        for field in ("unit",) if any_level else ("unit", "level"):
            if getattr(h, field) != getattr(w, field):
                raise InputError(
                    f"Modality {name}: {have_name} is {field} {getattr(h, field)!r}, but {want_name} expects "
                    f"{getattr(w, field)!r}; convert the data or use weights trained on it."
                )


def of_modality(
    modality: modalities_lib.Modality,
    *,
    gsd_m: float,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    nodata_fraction: float = 0.0,
    quality: Mapping[str, tuple[float, ...]] | None = None,
    acquisitions: int = 1,
) -> ModalityContract:
    """The contract of square tiles of a sensor, with statistics in its unit."""
    return ModalityContract(
        bands=modality.band_names,
        unit=modality.unit,
        level=modality.level,
        scale=modality.scale,
        offset=modality.offset,
        nodata=modalities_lib.NODATA,
        gsd_m=gsd_m,
        height=side,
        width=side,
        mean=tuple(mean),
        std=tuple(std),
        nodata_fraction=nodata_fraction,
        quality=quality or {},
        acquisitions=acquisitions,
    )


def assumed(
    names: Sequence[str], tile_size: int, pairs: int = 0, groups: Mapping[str, Sequence[str]] | None = None
) -> Contract:
    """The contract of a set that is not available: square tiles of known sensors, or of `groups` of their bands (each
    gives its sensor, then its bands), with no statistics.

    Raises:
      InputError: a modality that is no known sensor.
    """
    out: dict[str, ModalityContract] = {}
    for name in names:
        sensor, *bands = (groups or {}).get(name, (name,))
        if sensor not in modalities_lib.ASSUMED:
            raise InputError(f"The modality {name!r} is no known sensor; give --dataset, whose contract describes it.")
        m = modalities_lib.ASSUMED[sensor]
        count = len(m.bands)
        out[name] = of_modality(m, gsd_m=10.0, side=tile_size, mean=[0.0] * count, std=[1.0] * count)
        if bands:
            out[name] = in_band_order(out[name], bands)
    return Contract(
        name="assumed", source_version="", modalities=out, tasks={}, splits={"train": pairs}, split_origin="",
        license="", citation="", simulated=False,
    )  # fmt: skip


def in_band_order(modality: ModalityContract, bands: Sequence[str]) -> ModalityContract:
    """The same modality with its bands, and their statistics, in the order `bands`."""
    place = [modality.bands.index(b) for b in bands]
    return dataclasses.replace(
        modality,
        bands=tuple(bands),
        mean=tuple(modality.mean[i] for i in place),
        std=tuple(modality.std[i] for i in place),
    )


def check_modality_unit(values: np.ndarray, name: str, modality: ModalityContract, where: str) -> None:
    """As `check_unit`, for values in the unit of a contract's modality, bands in its order."""
    bands = tuple(modalities_lib.Band(b, 0.0, modality.gsd_m) for b in modality.bands)
    reach = (modality.offset, modality.offset + (modalities_lib.NODATA - 1) * modality.scale)
    sensor = modalities_lib.Modality(name, bands, modality.unit, modality.level, modality.scale, modality.offset, reach)
    check_unit(values, sensor, where)


def check_unit(values: np.ndarray, modality: modalities_lib.Modality, where: str) -> None:
    """Refuses pixels that cannot be in the declared unit. `values` are physical, NaN where there is no data.

    Decibel backscatter of land is mostly negative and rarely all inside [0, 2]; linear power is never negative.
    Reflectance x 10^4 has values in the hundreds; reflectance in 0..1 does not.

    Raises:
      InputError: with the range found, the range expected and the likely true unit.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    low, high = float(finite.min()), float(finite.max())
    guess = None
    if modality.unit == "dB" and low >= 0.0:
        guess = "linear power (convert with 10*log10)" if np.median(finite) < 5.0 else "amplitude digital numbers"
    elif modality.unit == "reflectance_1e4" and low >= -1.0 and high <= 2.0 and high > 0.0:
        guess = "reflectance in 0..1 (multiply by 10000)"
    elif low < modality.valid_range[0] or high > modality.valid_range[1]:
        guess = "a different unit, or no-data values that were not declared"
    if guess:
        raise InputError(
            f"{where}: values from {low:.4g} to {high:.4g} cannot be {modality.unit} for {modality.name} (expected "
            f"within {modality.valid_range[0]:g} to {modality.valid_range[1]:g}); they look like {guess}. "
            "State the true unit or convert the file."
        )
