"""Cross-modal InfoNCE with augmented views, no reconstruction; see `fusionx_jax.models.peers.Contrastive`.

Run: `fusionx pretrain --config=configs/methods/contrastive.py:BASE --workdir=W --config.dataset=DIR`.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    c = methods.plain(options, "contrastive")
    c.model.family = "contrastive"
    c.augment.views.least_area = 0.4
    return c
