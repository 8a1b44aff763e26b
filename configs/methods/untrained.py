"""The baseline of every table: FusionX-Net's encoder as it is initialized, frozen.

Run: `fusionx pretrain --config=configs/methods/untrained.py:BASE --workdir=W --config.dataset=DIR` (no step is taken).
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    c = methods.start(options, "untrained")
    c.num_steps = 0
    return c
