"""MAE on the stacked channels of all sensors, like SatViT; see `fusionx_jax.models.peers.StackedMAE`.

Run: `fusionx pretrain --config=configs/methods/stacked_mae.py:BASE --workdir=W --config.dataset=DIR`.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    c = methods.plain(options, "stacked_mae")
    c.model.family = "stacked"
    c.masking = "consistent"  # a patch has the bands of all sensors
    return c
