"""A convolutional ResNet trained from scratch on the labels; see `fusionx_jax.models.peers.ResNetEncoder`.

Run: `fusionx pretrain --config=configs/methods/supervised_resnet.py:BASE --workdir=W --config.dataset=DIR`, then
evaluate.
"""

from configs import methods


def get_config(options: str = ""):
    c = methods.plain(options, "supervised_resnet")
    c.num_steps = 0
    c.model.family = "resnet"
    c.evaluate.pooling = "mean"  # global average pooling, as residual networks have
    c.evaluate.evaluators = ("scratch",)
    return c
