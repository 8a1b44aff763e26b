"""FusionX-Net with fusion in the middle: most blocks are each sensor's own, then cross-attention and joint blocks.

The decoders attend to all sensors' tokens, and the sensors, each encoded alone, are contrasted as well as rebuilt.

Run: `fusionx pretrain --config=configs/methods/fusionx_mid.py:BASE --workdir=W --config.dataset=DIR`.
"""

from configs import methods
from fusionx_jax.models import fusionx


def get_config(options: str = ""):
    c = methods.start(options, "fusionx_mid")
    c.model.own_depth = fusionx.SIZES[c.model.size].depth * 3 // 4
    c.model.decoder_context = "all"
    c.model.contrastive = True
    return c
