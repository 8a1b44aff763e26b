"""FusionX-Net: cross-attention in the first encoder block and in the decoder, independent masks.

Run: `fusionx pretrain --config=configs/methods/fusionx.py:BASE --workdir=W --config.dataset=DIR`.
The variants of Fus-MAE (arXiv 2401.02764, section 4) are `--config.model.cross_attention=encoder|decoder|both|none` and
`--config.masking=independent|consistent`.
"""

from configs import methods


def get_config(options: str = ""):
    return methods.start(options, "fusionx")
