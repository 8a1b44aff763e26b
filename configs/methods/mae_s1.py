"""A masked autoencoder of the SAR sensor alone (MAE, arXiv 2111.06377).

Run: `fusionx pretrain --config=configs/methods/mae_s1.py:BASE --workdir=W --config.dataset=DIR`.
Differences from the paper: both targets where the base says so, a small decoder, flips and turns for crops.
"""

from configs import methods


def get_config(options: str = ""):
    c = methods.plain(options, "mae_s1")
    c.modalities = ("s1",)
    c.model.cross_attention = "none"  # with one sensor there is nothing to attend to: every block is an ordinary one
    return c
