"""`fusionx inspect DIR...`: what is in prepared sets, and what is wrong with them.

Every tile is read once, in order. Memory grows by a few bytes per tile: class counts come from the contract,
co-occurrence and histograms are sums, and duplicates are found by 64-bit hashes of the pixels.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax import files, modalities, progress
from fusionx_jax.contract import Contract
from fusionx_jax.prepared import order, store
from fusionx_jax.report.survey_page import BIN, Survey
from fusionx_jax.types import JsonObject, Untyped

_BINS = 65536 // BIN
_CHUNK = 64  # tiles read at once
_DARK_CHUNKS = 16  # of which pixels are kept for the check of the reflectance offset
_PIXELS = 4  # every fourth row and column serve histograms
_PLACE = 4  # decimals of a degree within which two tiles are at one place: about 10 m


def examine(directory: str, most: int | None = None, shown: int = 6) -> Survey:
    """Reads a prepared set, or `most` tiles evenly over it, and collects what the page shows.

    Raises:
      InputError: it is not a prepared set, or a record is damaged.
    """
    prepared = store.PreparedSet(directory, verify=True)
    contract = prepared.contract
    splits = [s for s, n in contract.splits.items() if n]
    total = sum(contract.splits[s] for s in splits)
    share = min(1.0, most / total) if most else 1.0
    totals = Totals(contract)
    with progress.Progress(max(1, round(share * total)), f"inspecting {contract.name}", "tile") as bar:
        for number, split in enumerate(splits):
            index = evenly_spaced(contract.splits[split], share)
            for start in range(0, len(index), _CHUNK):
                rows = index[start : start + _CHUNK]
                totals.add(number, split, prepared.read(split, rows, totals.features))
                bar.advance(len(rows))
    return Survey(
        directory=prepared.directory,
        contract=contract,
        examined=totals.examined,
        together=totals.together,
        histograms=totals.histograms,
        places=np.column_stack([totals.locations(), totals.split_numbers()[: len(totals.locations())]]),
        sheet=_sheet(prepared, splits, shown),
        warnings=_warnings(totals, splits, share),
    )


def evenly_spaced(size: int, share: float) -> np.ndarray:
    """Indices of a share of `size` tiles, at least one."""
    return np.unique(np.linspace(0, size - 1, max(1, round(share * size))).round().astype(int))


class Totals:
    """Sums over the tiles read so far.

    Attributes:
      features: the features of a tile that `add` needs.
      examined: tiles read, by split.
      together: [K, K] tiles with both classes, by multi-label task.
      histograms: [C, bins] pixels, by modality.
      moments: [C, 3] number, sum and sum of squares of the training pixels (physical units), by modality.
      dark: some training pixels (wire codes), by modality, for the check of the reflectance offset.
    """

    def __init__(self, contract: Contract):
        self.contract = contract
        self._multi = {name: t for name, t in contract.tasks.items() if t.kind == "multi"}
        self._images = [
            (contract_lib.acquisition(n, i), n) for n, m in contract.modalities.items() for i in range(m.acquisitions)
        ]
        self.features = [*(feature for feature, _ in self._images), *(t.feature for t in self._multi.values()), "id"]
        self.features += ["location"] if contract.has_location else []
        self.features += [contract.group_feature] if contract.group_feature else []
        self.examined: dict[str, int] = {}
        self.together = {name: np.zeros((len(t.classes),) * 2, np.int64) for name, t in self._multi.items()}
        self.histograms = {m: np.zeros((len(c.bands), _BINS), np.int64) for m, c in contract.modalities.items()}
        self.moments = {m: np.zeros((len(c.bands), 3)) for m, c in contract.modalities.items()}
        self.dark: dict[str, list[np.ndarray]] = {m: [] for m in contract.modalities}
        # Spread over the split: tiles in a row come from one place, which may be bright everywhere.
        self._dark_stride = max(1, contract.splits.get("train", 0) // (_CHUNK * _DARK_CHUNKS))
        # Hashes of 64 bits: the ids and pixels of half a million tiles would not fit in memory.
        self._hashes: dict[str, list[int]] = {"pixels": [], "id": [], "group": []}
        self._split_numbers: list[int] = []
        self._locations: list[np.ndarray] = []

    def add(self, number: int, split: str, batch: Mapping[str, np.ndarray]) -> None:
        """Adds a batch of the split with index `number`."""
        self.examined[split] = self.examined.get(split, 0) + len(batch["id"])
        for name, task in self._multi.items():
            present = (batch[task.feature] == 1).astype(np.int64)
            self.together[name] += present.T @ present
        for feature, name in self._images:
            m, tiles = self.contract.modalities[name], batch[feature]
            _add_pixels(tiles, m, self.histograms[name], self.moments[name] if split == "train" else None)
            if split == "train" and self.examined[split] // _CHUNK % self._dark_stride == 0:
                self.dark[name].append(tiles[:, ::8, ::8].reshape(-1, len(m.bands)))
        self._split_numbers += [number] * len(batch["id"])
        self._hashes["pixels"] += [_hash(*tile) for tile in zip(*(batch[f] for f, _ in self._images))]
        self._hashes["id"] += [_hash(i.encode()) for i in batch["id"]]
        if self.contract.group_feature:
            self._hashes["group"] += [_hash(g.encode()) for g in batch[self.contract.group_feature]]
        if self.contract.has_location:
            self._locations.append(batch["location"])

    def hashes(self, what: str) -> np.ndarray:
        """uint64 [N], equal for tiles with the same "pixels", "id" or "group"; [0] without groups."""
        return np.array(self._hashes[what], np.uint64)

    def split_numbers(self) -> np.ndarray:
        """uint8 [N], the index of each tile's split."""
        return np.array(self._split_numbers, np.uint8)

    def locations(self) -> np.ndarray:
        """[N, 2] longitude and latitude in degrees; [0, 2] for sets without locations."""
        return np.concatenate(self._locations) if self._locations else np.zeros((0, 2), np.float32)


def _warnings(totals: Totals, splits: Sequence[str], share: float) -> list[str]:
    contract, split_of = totals.contract, totals.split_numbers()
    scenes = "one scene in several splits, which only splits by block intend"
    return [
        *_statistics_warnings(contract, totals.moments, share),
        *_offset_warnings(contract, totals.dark),
        *_leaks(splits, split_of, totals.hashes("pixels"), "the same pixels"),
        *_leaks(splits, split_of, totals.hashes("id"), "the same id"),
        *_leaks(splits, split_of, totals.hashes("group"), scenes, within=False),
        *_leaks(splits, split_of, _place_codes(totals.locations()), "the same place", within=False),
        *_class_warnings(contract),
        *(note for note in contract.notes if "left out" in note),
    ]


def _hash(*parts: Untyped) -> int:
    """A 64-bit hash of bytes or arrays."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return int.from_bytes(digest.digest(), "little")


def _add_pixels(
    wire: np.ndarray, m: contract_lib.ModalityContract, bins: np.ndarray, moments: np.ndarray | None
) -> None:
    pixels = wire[:, ::_PIXELS, ::_PIXELS].reshape(-1, wire.shape[-1])
    pixels = pixels[(pixels != m.nodata).all(-1)]
    for band in range(pixels.shape[1]):
        bins[band] += np.bincount(pixels[:, band] // BIN, minlength=_BINS)
    if moments is not None:
        values = pixels.astype(np.float64) * m.scale + m.offset
        moments += np.stack([np.full(values.shape[1], len(values)), values.sum(0), (values**2).sum(0)], axis=1)


def _statistics_warnings(contract: Contract, moments: Mapping[str, np.ndarray], share: float) -> list[str]:
    """Bands whose pixels do not have the mean and deviation that the contract states."""
    out = []
    # A sixteenth of the pixels of all tiles: means differ by sampling alone. Far less than what would hurt a network.
    tolerance = 0.05 if share == 1.0 else 0.25
    for name, m in contract.modalities.items():
        count, total, squares = moments[name].T
        if not count.min():
            continue
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        for band, found, spread, stated, width in zip(m.bands, mean, deviation, m.mean, m.std):
            if abs(found - stated) > tolerance * width or abs(spread / width - 1) > tolerance:
                out.append(
                    f"{name} {band}: the contract has mean {stated:.4g} and deviation {width:.4g}, "
                    f"the training pixels have {found:.4g} and {spread:.4g}; the contract was edited or belongs to "
                    "other shards."
                )
    return out


def _offset_warnings(contract: Contract, dark: Mapping[str, Sequence[np.ndarray]]) -> list[str]:
    out = []
    for name, m in contract.modalities.items():
        if m.unit == "reflectance_1e4" and dark[name]:
            wire = np.concatenate(dark[name])
            remark = modalities.offset_remark(modalities.decode(wire, m.scale, m.offset), m.bands)
            out += [f"{name}: {remark}"] if remark else []
    return out


def _place_codes(where: np.ndarray) -> np.ndarray:
    """One number a place; tiles without place get numbers of their own."""
    if not len(where):
        return np.zeros(0, np.uint64)
    known = np.isfinite(where).all(1)
    scaled = np.where(known[:, None], np.round(where.astype(np.float64) * 10**_PLACE), 0).astype(np.int64)
    code = (scaled[:, 0] + (1 << 31)) * (1 << 32) + scaled[:, 1] + (1 << 31)
    return np.where(known, code, -1 - np.arange(len(where))).astype(np.int64).view(np.uint64)


def _leaks(splits: Sequence[str], split_of: np.ndarray, codes: np.ndarray, what: str, within: bool = True) -> list[str]:
    """Warnings on codes that occur in several splits, and, if `within`, more than once in one split."""
    if not len(codes):
        return []
    _, inverse = np.unique(codes, return_inverse=True)
    seen = np.zeros((inverse.max() + 1, len(splits)), np.int64)
    np.add.at(seen, (inverse, split_of[: len(codes)]), 1)
    out = []
    for i, a in enumerate(splits):
        for j, b in enumerate(splits[i + 1 :], i + 1):
            shared = (seen[:, i] > 0) & (seen[:, j] > 0)
            if shared.any():
                count = int(seen[shared, j].sum())
                out.append(f"leakage between {a} and {b}: {what} ({count} tiles of {b} share it with {a}).")
        if within and (seen[:, i] > 1).any():
            out.append(f"{int((seen[:, i] - 1).clip(0).sum())} tiles of {a} repeat others of it: {what}.")
    return out


def _class_warnings(contract: Contract) -> list[str]:
    out = []
    for name, task in contract.tasks.items():
        for split, counts in task.counts.items():
            absent = [c for c, n in zip(task.classes, counts) if not n]
            if absent:
                out.append(f"task {name}: {split} has no example of {', '.join(absent)}.")
    return out


def _sheet(prepared: store.PreparedSet, splits: Sequence[str], shown: int) -> list[JsonObject]:
    """Tiles spread over the first split, drawn in every composite, with their labels in words."""
    contract = prepared.contract
    split = splits[0]
    index = order.spread(prepared.size(split), shown)
    scene = [t for t in contract.tasks.values() if t.kind != "pixel"]
    texts = ["id", *([contract_lib.ACQUIRED] if contract.has_dates else [])]
    batch = prepared.read(split, index, [*contract.features(), *(t.feature for t in scene), *texts])
    out = []
    for row in range(len(index)):
        images = {}
        for name, m in contract.features().items():
            physical = modalities.decode(batch[name][row], m.scale, m.offset)
            ways = m.composites()[:1] if m.acquisitions > 1 else m.composites()
            for way in ways or (None,):
                title = f"{name}, {way.name}" if way else f"{name}, first bands"
                images[title] = modalities.compose(physical, m.bands, (way,) if way else ())
        words = []
        for name, dates in (json.loads(str(batch[contract_lib.ACQUIRED][row])) if contract.has_dates else {}).items():
            words += [f"{name} {', '.join(filter(None, dates))}"] if any(dates) else []
        for task in scene:
            value = batch[task.feature][row]
            names = _class_names(task, value)
            words.append(f"{'mostly ' if task.kind == 'single' and len(scene) > 1 else ''}{', '.join(names) or 'none'}")
        out.append({"id": str(batch["id"][row]), "images": images, "labels": words})
    return out


def _class_names(task: contract_lib.Task, value: np.ndarray | np.integer) -> list[str]:
    """The classes that a tile's label names."""
    if (np.asarray(value) == contract_lib.IGNORE_LABEL).all():
        return ["unlabeled"]
    return [task.classes[int(value)]] if task.kind == "single" else list(np.array(task.classes)[value > 0])


def summary(survey: Survey) -> str:
    """The set as a few lines and a table for a terminal."""
    c = survey.contract
    here = () if files.is_address(survey.directory) else os.listdir(survey.directory)
    size = sum(os.path.getsize(os.path.join(survey.directory, f)) for f in here if ".array_record-" in f)
    lines = [
        f"{c.title}: {survey.directory}" + (f", {size / 1e9:.2f} GB" if here else ""),
        "  " + ", ".join(f"{n} {s}" for s, n in c.splits.items()) + f" tiles; splits {c.split_origin}",
        f"  license {c.license}; {c.citation}",
    ]
    for name, m in c.modalities.items():
        lines.append(
            f"  {name}: {m.level}, {m.unit}, {f'{m.acquisitions} dates of ' if m.acquisitions > 1 else ''}"
            f"{len(m.bands)} bands of {m.height} x {m.width} at {m.gsd_m:g} m, "
            f"{100 * m.nodata_fraction:.2g} % without data"
        )
    for name, task in c.tasks.items():
        splits = list(task.counts)
        unit = "pixels" if task.kind == "pixel" else "tiles"
        lines.append(f"  task {name} ({unit}):{'':14}" + "".join(f"{s:>12}" for s in splits))
        for k, label in enumerate(task.classes):
            lines.append(f"    {label[:34]:34}" + "".join(f"{task.counts[s][k]:12d}" for s in splits))
    lines += [f"  warning: {w}" for w in survey.warnings] or ["  nothing looks wrong"]
    return "\n".join(lines)
