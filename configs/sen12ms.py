"""SEN12MS: pretraining on its training pairs and evaluation on its scene and pixel labels.

Run: `fusionx pretrain --config=configs/sen12ms.py --workdir=W --config.dataset=DIR`, or any method with
`--config=configs/methods/METHOD.py:sen12ms`; the comparison with `python -m experiments.label_sweep
--config=configs/sen12ms.py --methods=… --workdir=W --dataset=DIR`.
Cost: 100 epochs of ViT-B, meant for 8 accelerators; not measured.
Protocol: the scene-wise split of the classification benchmark (arXiv 2104.00704: 162,556 of 180,662 pairs are training
pairs), pretraining on 128 x 128 crops; single-label accuracy and mIoU of the simplified IGBP classes.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(options: str = "") -> ConfigDict:
    """`options` is not used here."""
    del options
    # 5 of 100 epochs of warm-up, the share of MAE (40 of 800; arXiv 2111.06377, table 8).
    c = default.full_size(train_pairs=162_556, epochs=100, batch_size=512, warmup_epochs=5)
    c.dataset = "runs/prepared/sen12ms/1.0.0"
    c.augment.crop = 128
    c.model.size = "base"
    c.model.patch_size = 16
    e = c.evaluate
    e.tasks = ("multi", "single", "pixel")
    e.evaluators = ("linear_probe", "knn", "finetune", "segment_linear", "segment_decoder")
    e.batch_size = 64
    return c
