"""MultiMAE (arXiv 2204.01678, section 3) with sensors as its modalities.

A symmetric Dirichlet draw (alpha 1) shares one budget of visible tokens among the sensors, the encoder is a plain
transformer over all of them, and the decoder of each sensor attends to the encoded tokens of all sensors before its
blocks.

Run: `fusionx pretrain --config=configs/methods/multimae.py:BASE --workdir=W --config.dataset=DIR`.
Differences from the paper: the budget is that of the base's mask ratio (there 98 of 588 tokens); padding tokens keep
shapes static, so a step takes longer than its visible tokens need; decoders have the width and depth of the base (there
256 x 2); losses are not balanced between tasks.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    return named(options, "multimae")


def named(base: str, method: str) -> ConfigDict:
    """The config of the method of that name, on a base."""
    c = methods.plain(base, method)
    c.model.cross_attention = "decoder"
    c.model.decoder_context = "all"
    c.masking = "dirichlet"
    c.masking_options.dirichlet.alpha = 1.0
    return c
