"""What the pixels themselves say about unit and offset, before a set is written."""

from collections.abc import Mapping

import numpy as np

from data.source import BadTile, Description, Source, evenly
from fusionx_jax.contract import check_unit
from fusionx_jax.modalities import offset_remark

_EXAMINED = 48  # tiles, evenly over the training split


def examine(source: Source, description: Description, splits: Mapping[str, int]) -> list[str]:
    """Reads some training tiles and returns remarks on what looks wrong without being certainly so.

    Raises:
      InputError: values that cannot be in the declared unit.
    """
    picked = evenly(splits["train"], _EXAMINED)
    pixels: dict[str, list[np.ndarray]] = {m: [] for m in description.modalities}
    for index in picked:
        try:
            example = source.example("train", int(index))
        except BadTile:
            continue  # counted when the set is written
        for feature, name, _ in description.features():
            if feature not in example:
                continue
            tile = np.asarray(example[feature])
            pixels[name].append(tile[::2, ::2].reshape(-1, tile.shape[-1]))
    remarks = []
    for name, modality in description.modalities.items():
        if not pixels[name]:
            continue
        values = np.concatenate(pixels[name])
        check_unit(values, modality, f"{description.name}, {len(picked)} training tiles")
        if modality.unit == "reflectance_1e4":
            remark = offset_remark(values, modality.band_names)
            remarks += [f"{name}: {remark}"] if remark else []
    return remarks
