"""BigEarthNet-MM (version 2): pretraining on its training pairs, evaluation with 1 to 100 % of their labels.

Run: `fusionx pretrain --config=configs/bigearthnet_mm.py --workdir=W --config.dataset=DIR`, or any method with
`--config=configs/methods/METHOD.py:bigearthnet_mm`; the comparison with `python -m experiments.label_sweep
--config=configs/bigearthnet_mm.py --methods=… --workdir=W --dataset=DIR`.
Cost: 100 epochs of ViT-B, meant for 8 accelerators; not measured.
Protocol: the official split of reBEN (arXiv 2407.03653, section III: 237,871 training pairs), macro and micro average
precision over the whole test split, regularization selected within the labels.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(options: str = "") -> ConfigDict:
    """`options` is not used here."""
    del options
    # 5 of 100 epochs of warm-up, the share of MAE (40 of 800; arXiv 2111.06377, table 8).
    c = default.full_size(train_pairs=237_871, epochs=100, batch_size=512, warmup_epochs=5)
    c.dataset = "runs/prepared/bigearthnet_v2/1.0.0"
    c.model.size = "base"
    c.model.patch_size = 8  # as CROMA on 120 x 120 pixels (arXiv 2311.00566, section 4)
    e = c.evaluate
    e.tasks = ("multi", "pixel")
    e.evaluators = ("linear_probe", "knn", "finetune", "segment_linear")
    return c
