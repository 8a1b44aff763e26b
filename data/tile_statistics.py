"""Statistics of the stored tiles: streaming sums of each shard, and the contract made of all shards."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from data import quality
from data.source import SPLITS, Description, LeftOut
from fusionx_jax import contract as contract_lib
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.errors import InputError
from fusionx_jax.types import Untyped


@dataclasses.dataclass(frozen=True)
class ShardStatistics:
    """Statistics of one shard, stored beside it until the set is complete.

    Attributes:
      sums: by modality, for each band the number of valid pixels, the sum and the sum of squares of their wire codes.
      missing: pixels without data by modality.
      counts: tiles (pixels for pixel labels) of each class by task.
      num_bytes, num_examples: size and number of the records.
      quality: counts of missing, clipped and zero pixels, see `quality.Counts`.
      remarks: what the files of the tiles declare that was applied, and the number of these tiles.
      left_out: examples of this shard that could not be used.
    """

    sums: Mapping[str, list[list[float]]]
    missing: Mapping[str, int]
    counts: Mapping[str, list[int]]
    num_bytes: int
    num_examples: int
    quality: quality.Counts
    remarks: Mapping[str, int]
    left_out: tuple[LeftOut, ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self) | {"left_out": [list(entry) for entry in self.left_out]})

    @classmethod
    def from_json(cls, text: str) -> "ShardStatistics":
        raw = json.loads(text)
        return cls(**{**raw, "left_out": tuple(LeftOut(*entry) for entry in raw["left_out"])})


class Accumulator:
    """Exact streaming sums over the tiles of one shard."""

    def __init__(self, description: Description):
        self._description = description
        self._sums = {name: np.zeros((3, len(m.bands)), np.float64) for name, m in description.modalities.items()}
        self._missing = dict.fromkeys(description.modalities, 0)
        self._counts = {name: np.zeros(len(t.classes), np.int64) for name, t in description.tasks.items()}
        self._examples = self._bytes = 0
        self._quality = quality.Counter(description)
        self._remarks = collections.Counter[str]()

    def add(self, example: Mapping[str, Untyped], wire: Mapping[str, Untyped], num_bytes: int) -> None:
        """Adds an example in physical units and as it is stored, in `num_bytes` bytes."""
        self._quality.add(example, str(example.get("group", "")))
        self._remarks.update(example.get("remarks", ()))
        self._examples += 1
        self._bytes += num_bytes
        for feature, name, _ in self._description.features():
            if feature not in example:
                continue
            tile = wire[feature]
            valid = tile[..., 0] != modalities_lib.NODATA
            pixels = tile[valid].astype(np.float64)
            self._sums[name] += [np.full(tile.shape[-1], len(pixels)), pixels.sum(0), (pixels**2).sum(0)]
            self._missing[name] += int((~valid).sum())
        for name, task in self._description.tasks.items():
            value = wire[task.feature]
            if task.kind == "single":
                self._counts[name][value : value + 1] += 1  # none for an unlabeled tile
            elif task.kind == "multi":
                self._counts[name] += value * (value != contract_lib.IGNORE_LABEL)
            else:
                labels = value[value != contract_lib.IGNORE_LABEL]
                self._counts[name] += np.bincount(labels, minlength=len(task.classes))

    def result(self, left_out: Sequence[LeftOut]) -> ShardStatistics:
        return ShardStatistics(
            sums={k: v.tolist() for k, v in self._sums.items()},
            missing=self._missing,
            counts={k: v.tolist() for k, v in self._counts.items()},
            num_bytes=self._bytes,
            num_examples=self._examples,
            quality=self._quality.result(),
            remarks=dict(self._remarks),
            left_out=tuple(left_out),
        )


def build_contract(
    description: Description, by_split: Mapping[str, Sequence[ShardStatistics]]
) -> contract_lib.Contract:
    """Merges shard statistics: mean and deviation over valid pixels of the training split, class counts by split.

    Raises:
      InputError: a modality has no valid training pixel, or a band is constant.
    """
    tasks = {
        name: contract_lib.Task(
            task.feature,
            task.kind,
            task.classes,
            {
                split: tuple(np.sum([s.counts[name] for s in members], axis=0).tolist())
                for split, members in by_split.items()
            },
            task.acquisitions,
        )
        for name, task in description.tasks.items()
    }
    return contract_lib.Contract(
        name=description.name,
        simulated=description.simulated,
        modalities={name: _modality(description, name, by_split) for name in description.modalities},
        tasks=tasks,
        splits={s: sum(m.num_examples for m in by_split[s]) for s in SPLITS if s in by_split},
        split_origin=description.split_origin,
        license=description.license,
        citation=description.citation,
        source_version=description.source_version,
        notes=description.notes,
        has_location=description.has_location,
        group_feature="group" if description.has_group else None,
        has_dates=description.has_dates,
    )


def _modality(
    description: Description, name: str, by_split: Mapping[str, Sequence[ShardStatistics]]
) -> contract_lib.ModalityContract:
    modality = description.modalities[name]
    count, total, squares = np.sum([s.sums[name] for s in by_split["train"]], axis=0)
    if not count.min():
        raise InputError(
            f"No training tile of {description.name} has a valid {name} pixel; check the no-data value of its files."
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    if (std <= 0).any():
        constant = [b for b, s in zip(modality.band_names, std) if s <= 0]
        raise InputError(
            f"The band {', '.join(constant)} of {name} has one value in all training tiles of {description.name}; "
            "leave it out or check the file."
        )
    every = [s for members in by_split.values() for s in members]
    valid = sum(s.sums[name][0][0] for s in every)
    missing = sum(s.missing[name] for s in every)
    return contract_lib.of_modality(
        modality,
        gsd_m=description.gsd_m,
        side=description.tile_size,
        mean=(mean * modality.scale + modality.offset).tolist(),
        std=(std * modality.scale).tolist(),
        nodata_fraction=missing / (missing + valid),
        quality=_quality(name, every),
        acquisitions=description.acquisitions.get(name, 1),
    )


def _quality(name: str, statistics: Sequence[ShardStatistics]) -> dict[str, tuple[float, ...]]:
    """Shares of missing, clipped and zero pixels by band."""
    total, *counts = quality.merge({"": s.quality[""]} for s in statistics if s.quality)[""][name]
    return {kind: tuple((c / total).tolist()) for kind, c in zip(quality.KINDS, counts)}
