"""What a builder provides: a description of the data and random access to its examples.

Every data set folder (`data/simulated`, `data/paired_scenes`) implements `Source`; `data/writer.py` turns any source
into a prepared set. An example is a pure function of (split, index), so that shards can be written in any order, by
any worker, and again after an interruption.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fusionx_jax import modalities as modalities_lib
from fusionx_jax.contract import IGNORE_LABEL, Task, acquisition
from fusionx_jax.types import Example, Untyped

SPLITS = ("train", "val", "test")
LITTLE_DATA = "little data"
"""The kind of left-out tiles that a threshold decides and that are no failures: scenes end within them."""


@dataclasses.dataclass(frozen=True)
class Description:
    """Description of a source; with the statistics of its tiles it becomes the contract.

    `acquisitions` has the modalities that a tile holds at several dates, and at how many.
    """

    name: str
    simulated: bool
    modalities: Mapping[str, modalities_lib.Modality]
    gsd_m: float
    tile_size: int
    tasks: Mapping[str, Task]
    split_origin: str
    license: str
    citation: str
    source_version: str
    notes: tuple[str, ...] = ()
    has_location: bool = False
    has_group: bool = False
    has_dates: bool = False
    acquisitions: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def features(self) -> list[tuple[str, str, modalities_lib.Modality]]:
        """Feature, modality and sensor of every image of a tile."""
        return [
            (acquisition(name, i), name, sensor)
            for name, sensor in self.modalities.items()
            for i in range(self.acquisitions.get(name, 1))
        ]


class BadTile(Exception):
    """One example cannot be used; the preparation leaves it out, counts and lists it, and goes on.

    `kind` is a short name for the cause ("missing pair"), `detail` names the file.
    """

    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


class LeftOut(NamedTuple):
    """An example that is not in the prepared set, and why."""

    id: str
    kind: str
    detail: str


class Source(Protocol):
    """A data set that can be prepared."""

    def describe(self) -> Description: ...

    def splits(self) -> Mapping[str, int]:
        """Number of examples of each split."""

    def example(self, split: str, index: int) -> Example:
        """`{modality: float physical [H, W, C], label feature: array, "id": str, ...}`; NaN marks missing pixels.

        Further acquisitions of a modality have the names that `contract.acquisition` gives; one that is absent is
        stored without data. A label of 255 marks an unlabeled tile.

        Raises:
          BadTile: this example cannot be used.
        """

    def left_out(self) -> Sequence[LeftOut]:
        """Examples that were found unusable while listing the source, such as tiles without their partner."""

    def listed(self) -> int:
        """How many examples the source lists, also those left out and those not selected."""


def evenly(total: int, count: int) -> np.ndarray:
    """At most `count` numbers of range(total), evenly spread, including the first and the last."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))


def fingerprint(*parts: Untyped) -> str:
    """Eight hexadecimal digits: a hash of a listing and of the options that it depends on."""
    digest = hashlib.sha256()
    for part in parts:
        for entry in part if isinstance(part, list | tuple) else (part,):
            digest.update(repr(entry).encode() + b"\n")
    return digest.hexdigest()[:8]


def scene_labels(pixels: np.ndarray, num_classes: int, cover: float) -> tuple[np.ndarray, int]:
    """Scene labels from pixel labels [H, W]: multi-hot uint8 [K] (classes of at least `cover`) and dominant class.

    Unlabeled pixels (255) do not count; a tile without any labeled pixel has an empty multi-hot and class 0, so
    sources drop such tiles.
    """
    counts = np.bincount(pixels[pixels != IGNORE_LABEL].ravel(), minlength=num_classes)[:num_classes]
    multi = (counts >= cover * max(counts.sum(), 1)) & (counts > 0)
    return multi.astype(np.uint8), int(counts.argmax())
