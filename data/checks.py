"""What the pixels themselves say about unit and offset, before a set is written."""

from collections.abc import Mapping

import numpy as np

from data.source import BadTile, Description, Source
from fusionx_jax.contract import check_unit

_EXAMINED = 48  # tiles, evenly over the training split
_OFFSET = 1000.0  # DN; Sentinel-2 products since processing baseline 04.00 (25 January 2022)


def examine(source: Source, description: Description, splits: Mapping[str, int]) -> list[str]:
    """Reads some training tiles and returns remarks on what looks wrong without being certainly so.

    Raises:
      InputError: values that cannot be in the declared unit.
    """
    count = splits["train"]
    picked = np.unique(np.linspace(0, count - 1, min(_EXAMINED, count)).round().astype(int))
    pixels: dict[str, list[np.ndarray]] = {m: [] for m in description.modalities}
    for index in picked:
        try:
            example = source.example("train", int(index))
        except BadTile:
            continue  # counted when the set is written
        for name in pixels:
            tile = np.asarray(example[name])
            pixels[name].append(tile[::2, ::2].reshape(-1, tile.shape[-1]))
    remarks = []
    for name, modality in description.modalities.items():
        if not pixels[name]:
            continue
        values = np.concatenate(pixels[name])
        check_unit(values, modality, f"{description.name}, {len(pixels[name])} training tiles")
        if modality.unit == "reflectance_1e4":
            remarks += [f"{name}: {remark}" for remark in offset_remarks(values, modality.band_names)]
    return remarks


def offset_remarks(values: np.ndarray, bands: tuple[str, ...]) -> list[str]:
    """Whether reflectance x 10^4 [N, C] looks as if the offset of -1000 was forgotten, or subtracted without need.

    Water, shadow and dense forest bring the darkest pixels of the red and short-wave bands close to zero; with the
    offset still in, nothing lies below 1000 in any band. Subtracted twice or without need, a good part is negative.
    """
    dark = [i for i, b in enumerate(bands) if b in ("B04", "B05", "B11", "B12")]
    finite = values[np.isfinite(values).all(-1)]
    if not dark or len(finite) < 100:
        return []
    lowest = np.percentile(finite[:, dark], 0.5, axis=0)
    negative = float((finite[:, dark] < 0).mean())
    if lowest.min() >= _OFFSET:
        return [
            f"the darkest pixels lie at {lowest.min():.0f}, above 1000: the offset of processing baseline 04.00 (since "
            "2022) seems not to be subtracted; check the products' metadata and pass --s2_offset=-1000 if they have it."
        ]
    if negative > 0.2:
        return [
            f"{100 * negative:.0f} % of the red and short-wave pixels are negative: an offset seems to be subtracted "
            "that these products do not have; check --s2_offset."
        ]
    return []
