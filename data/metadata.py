"""The metadata of a finished set: what TFDS reads, and the contract."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from data import left_out, remarks
from data.shard_writer import WORK_DIR, Shard
from data.source import Description
from data.tile_statistics import ShardStatistics, build_contract
from fusionx_jax import contract as contract_lib
from fusionx_jax import files
from fusionx_jax.contract import ACQUIRED

if TYPE_CHECKING:
    import tensorflow_datasets

TFDS_VERSION = "1.0.0"


def write(
    directory: str,
    description: Description,
    shards: Sequence[Shard],
    statistics: Mapping[str, ShardStatistics],
    tally: left_out.Tally,
) -> None:
    """Writes the TFDS metadata, then the contract, which marks the set as finished; then removes the work folder.

    `statistics` are by the file name of their shard.
    """
    if tally.entries:
        remark = f"{tally.summary()}; see {left_out.FILE_NAME}."
        print(remark, file=sys.stderr)
        description = dataclasses.replace(description, notes=(*description.notes, remark))
    by_split: dict[str, list[ShardStatistics]] = {}
    for shard in shards:
        by_split.setdefault(shard.split, []).append(statistics[shard.filename])
    by_split = {split: members for split, members in by_split.items() if sum(m.num_examples for m in members)}
    contract = build_contract(description, by_split)
    found = [*remarks.on_files(s.remarks for s in statistics.values()), *remarks.on_classes(contract)]
    for remark in found:
        print(f"{remark}.", file=sys.stderr)
    contract = dataclasses.replace(contract, notes=(*contract.notes, *found))
    _write_tfds(directory, description, by_split)
    with files.replacing(os.path.join(directory, contract_lib.FILE_NAME)) as f:
        f.write(contract.to_json())
    shutil.rmtree(os.path.join(directory, WORK_DIR))


def _write_tfds(directory: str, description: Description, by_split: Mapping[str, Sequence[ShardStatistics]]) -> None:
    import tensorflow_datasets as tfds

    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[m.num_examples for m in members],
            num_bytes=sum(m.num_bytes for m in members),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=directory, dataset_name=description.name, split=split, filetype_suffix="array_record"
            ),
        )
        for split, members in by_split.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=_tfds_features(tfds, description),
        split_infos=infos,
        version=TFDS_VERSION,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
        description=f"{description.source_version}. {' '.join(description.notes)}",
        citation=description.citation,
        license=description.license,
    )


def _tfds_features(tfds: ModuleType, description: Description) -> "tensorflow_datasets.features.FeaturesDict":
    size = description.tile_size

    def tensor(shape: tuple[int, ...], dtype: type) -> "tensorflow_datasets.features.Tensor":
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    features = {f: tensor((size, size, len(m.bands)), np.uint16) for f, _, m in description.features()}
    for task in description.tasks.values():
        if task.kind == "single":
            features[task.feature] = tfds.features.ClassLabel(names=list(task.classes))
        elif task.kind == "multi":
            features[task.feature] = tensor((len(task.classes),), np.uint8)
        else:
            features[task.feature] = tensor((size, size), np.uint8)
    features["id"] = tfds.features.Text()
    if description.has_group:
        features["group"] = tfds.features.Text()
    if description.has_dates:
        features[ACQUIRED] = tfds.features.Text()
    if description.has_location:
        features["location"] = tensor((2,), np.float32)
    return tfds.features.FeaturesDict(features)
