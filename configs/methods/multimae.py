"""MultiMAE (arXiv 2204.01678, section 3) with sensors for tasks.

Visible tokens of all sensors share one budget by a symmetric Dirichlet draw (alpha 1), the encoder is a plain
transformer over all of them, and each sensor's decoder attends to the encoded tokens of all sensors before its own
blocks.

Run: `fusionx pretrain --config=configs/methods/multimae.py:BASE --workdir=W --config.dataset=DIR`.
Differences from the paper: the budget is the base's mask ratio (there 98 of 588 tokens); padding tokens keep shapes
static, so a step takes more time here than the tokens it uses; decoders have the base's width and depth (there 256 x
2); no class balancing of losses.
"""

from configs import methods


def get_config(options: str = ""):
    c = methods.plain(options, "multimae")
    c.model.cross_attention = "decoder"
    c.model.decoder_context = "all"
    c.masking = "dirichlet"
    c.masking_options.dirichlet.alpha = 1.0
    return c
