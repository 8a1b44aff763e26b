"""MultiMAE with InfoNCE between the sensors, each encoded alone, as FusionX-Net has it; see multimae.py here.

Run: `fusionx pretrain --config=configs/methods/multimae_contrastive.py:BASE --workdir=W --config.dataset=DIR`.
"""

from ml_collections import ConfigDict

from configs.methods import multimae


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    c = multimae.named(options, "multimae_contrastive")
    c.model.contrastive = True
    return c
