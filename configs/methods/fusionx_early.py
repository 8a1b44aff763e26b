"""FusionX-Net with fusion at the first block, as Fus-MAE (arXiv 2401.02764, section 3).

Cross-attention in the first encoder block and in the decoder, which attends to the other sensor only; no InfoNCE.
The paper's variants (section 4) are `--config.model.cross_attention=encoder|decoder|both|none` and
`--config.masking=independent|consistent`.

Run: `fusionx pretrain --config=configs/methods/fusionx_early.py:BASE --workdir=W --config.dataset=DIR`.
"""

from ml_collections import ConfigDict

from configs import methods


def get_config(options: str = "") -> ConfigDict:
    """`options` is the name of the base config."""
    return methods.plain(options, "fusionx_early")
