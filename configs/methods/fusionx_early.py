"""FusionX-Net fused at the first block, as Fus-MAE is (arXiv 2401.02764, section 3).

Cross-attention in the first encoder block and in the decoder, which reads the other sensor alone; nothing contrasted.
The paper's variants (section 4) are `--config.model.cross_attention=encoder|decoder|both|none` and
`--config.masking=independent|consistent`.

Run: `fusionx pretrain --config=configs/methods/fusionx_early.py:BASE --workdir=W --config.dataset=DIR`.
"""

from configs import methods


def get_config(options: str = ""):
    return methods.plain(options, "fusionx_early")
