"""FusionX-Net by default: blocks per sensor, then the fusion block with cross-attention and joint blocks.

Run: `fusionx pretrain --config=configs/methods/fusionx.py:BASE --workdir=W --config.dataset=DIR`.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    return methods.start(options, "fusionx")
