"""Two masked autoencoders, one a sensor, with features side by side; see `fusionx_jax.models.peers.SeparateMAE`.

Run: `fusionx pretrain --config=configs/methods/mae_pair.py:BASE --workdir=W --config.dataset=DIR`.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    c = methods.plain(options, "mae_pair")
    c.model.family = "separate"
    c.model.cross_attention = "none"
    return c
