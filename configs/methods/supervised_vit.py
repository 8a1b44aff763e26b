"""A joint encoder of all sensors trained from scratch on the labels: an untrained checkpoint, fine-tuned as a whole.

It is FusionX-Net's with fusion at the first block, as many blocks a token as every other method.

Run: `fusionx pretrain --config=configs/methods/supervised_vit.py:BASE --workdir=W --config.dataset=DIR`, then evaluate.
"""

from configs import methods


def get_config(options: str = ""):
    c = methods.plain(options, "supervised_vit")
    c.num_steps = 0
    c.evaluate.evaluators = ("scratch",)
    return c
