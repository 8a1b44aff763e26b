"""FusionX-Net with the optical bands grouped by resolution, each group a modality.

Every group has a patch embedding and masks, attends to all others, and may be missing at inference.

Run: `fusionx pretrain --config=configs/methods/fusionx_bands.py:BASE --workdir=W --config.dataset=DIR`.
"""

from ml_collections import ConfigDict

from configs import methods

# By ground sampling distance (Sentinel-2 products specification): the red-edge and short-wave bands have 20 m.
GROUPS = {
    "s2_10m": ("s2", "B02", "B03", "B04", "B08"),
    "s2_20m": ("s2", "B05", "B06", "B07", "B8A", "B11", "B12"),
    "s2_60m": ("s2", "B01", "B09"),
}


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    c = methods.start(options, "fusionx")  # with the learning rate of fusionx
    c.method = "fusionx_bands"
    c.band_groups = ConfigDict(GROUPS)
    c.modalities = ("s1", *GROUPS)
    c.loss_weights = ConfigDict(dict.fromkeys(c.modalities, 1.0))
    all_but_one = ["+".join(m for m in c.modalities if m != missing) for missing in c.modalities]
    c.evaluate.modalities = ("+".join(c.modalities), *all_but_one, "s1")
    return c
