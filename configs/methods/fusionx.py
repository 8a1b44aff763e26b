"""FusionX-Net as it is by default: blocks of each sensor's own, then cross-attention and joint blocks.

Run: `fusionx pretrain --config=configs/methods/fusionx.py:BASE --workdir=W --config.dataset=DIR`.
"""

from configs import methods


def get_config(options: str = ""):
    return methods.start(options, "fusionx")
