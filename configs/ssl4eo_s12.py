"""SSL4EO-S12: pretraining on a million pairs; there are no labels, evaluation is on another set.

Run: `fusionx pretrain --config=configs/ssl4eo_s12.py --workdir=W --config.dataset=DIR`, or any method with
`--config=configs/methods/METHOD.py:ssl4eo_s12`; then `fusionx evaluate --workdir=W --dataset=OTHER`, where OTHER has
the same levels of both sensors.
Cost: 100 epochs of ViT-S are meant for 8 accelerators; not run here.
Protocol: ViT-S/16 at 224 x 224 crops, 70 % hidden, 100 epochs (arXiv 2211.07044, section IV; the FG-MAE recipe);
251,079 places, four seasons each.
"""

from configs import bigearthnet_mm, default

TRAIN_PAIRS = 4 * 251_079
EPOCHS = 100


def get_config(options: str = ""):
    """`options` is not used here."""
    del options
    c = default.get_config()
    c.dataset = "runs/prepared/ssl4eo_s12/1.0.0"
    c.batch_size = 1024
    c.num_steps = EPOCHS * TRAIN_PAIRS // c.batch_size
    c.optimizer.warmup_steps = c.num_steps // 10
    c.checkpoint_every = 1_000
    c.mask_ratio = 0.7
    c.augment.crop = 224
    c.model.size = "small"
    c.model.patch_size = 16
    c.model.dtype = "bfloat16"
    judged = bigearthnet_mm.get_config()
    c.label_fractions, c.evaluate = judged.label_fractions, judged.evaluate
    return c
