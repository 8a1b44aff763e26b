"""SSL4EO-S12: pretraining on a million pairs. It has no labels: evaluation is on another set.

Run: `fusionx pretrain --config=configs/ssl4eo_s12.py --workdir=W --config.dataset=DIR`, or any method with
`--config=configs/methods/METHOD.py:ssl4eo_s12`; then `fusionx evaluate --workdir=W --dataset=OTHER`, where OTHER has
the same processing levels of both sensors.
Cost: 100 epochs of ViT-S, meant for 8 accelerators; not measured.
Protocol: ViT-S/16, 224 x 224 crops, mask ratio 0.7, 100 epochs (arXiv 2211.07044, section IV; the FG-MAE recipe);
251,079 locations, four seasons each. Evaluation settings are those of configs/bigearthnet_mm.py.
"""

from ml_collections import ConfigDict

from configs import bigearthnet_mm, default


def get_config(options: str = "") -> ConfigDict:
    """`options` is not used here."""
    del options
    c = default.full_size(train_pairs=4 * 251_079, epochs=100, batch_size=1024, warmup_epochs=10)
    c.dataset = "runs/prepared/ssl4eo_s12/1.0.0"
    c.mask_ratio = 0.7
    c.augment.crop = 224
    c.model.size = "small"
    c.model.patch_size = 16
    c.evaluate = bigearthnet_mm.get_config().evaluate
    return c
