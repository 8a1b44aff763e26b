"""A masked autoencoder of the SAR sensor alone (MAE, arXiv 2111.06377).

Run: `fusionx pretrain --config=configs/methods/mae_s1.py:BASE --workdir=W --config.dataset=DIR`.
Differences from the paper: the target of the base, a small decoder, flips and rotations instead of resized crops.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    return methods.single_modality(options, "mae_s1", "s1")
