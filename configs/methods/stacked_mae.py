"""MAE on the stacked channels of all sensors, like SatViT; see `fusionx_jax.models.peers.StackedMAE`.

Run: `fusionx pretrain --config=configs/methods/stacked_mae.py:BASE --workdir=W --config.dataset=DIR`.
"""

from configs import methods


def get_config(options: str = ""):
    c = methods.plain(options, "stacked_mae")
    c.model.family = "stacked"
    c.masking = "consistent"  # one patch holds all sensors
    return c
