"""CROMA; see `fusionx_jax.models.peers.Croma` for what differs from the paper.

Run: `fusionx pretrain --config=configs/methods/croma.py:BASE --workdir=W --config.dataset=DIR`.
"""

from configs import methods


def get_config(options: str = ""):
    c = methods.plain(options, "croma")
    c.model.family = "croma"
    c.masking = "independent"  # with equal counts, as in the paper
    c.contrast.weight = 1.0
    c.contrast.temperature = 0.07
    return c
