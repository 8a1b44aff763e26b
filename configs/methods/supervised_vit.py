"""A joint encoder of all sensors trained from scratch on labels: that of FusionX-Net with fusion at the first block.

Run: `fusionx pretrain --config=configs/methods/supervised_vit.py:BASE --workdir=W --config.dataset=DIR`, then evaluate.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    c = methods.plain(options, "supervised_vit")
    c.num_steps = 0
    c.evaluate.evaluators = ("scratch",)
    return c
