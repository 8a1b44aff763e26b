"""CROMA; see `fusionx_jax.models.peers.Croma` for what differs from the paper.

Run: `fusionx pretrain --config=configs/methods/croma.py:BASE --workdir=W --config.dataset=DIR`.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    c = methods.plain(options, "croma")
    c.model.family = "croma"
    c.masking = "independent"  # with equal mask ratios, as in the paper (section 3)
    return c
