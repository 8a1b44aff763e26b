"""A ResNet trained from scratch on labels; see `fusionx_jax.models.peers.ResNetEncoder`.

Run: `fusionx pretrain --config=configs/methods/supervised_resnet.py:BASE --workdir=W --config.dataset=DIR`, then
evaluate.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    c = methods.plain(options, "supervised_resnet")
    c.num_steps = 0
    c.model.family = "resnet"
    c.evaluate.pooling = "mean"  # global average pooling (arXiv 1512.03385)
    c.evaluate.evaluators = ("scratch",)
    return c
