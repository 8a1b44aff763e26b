"""BigEarthNet-MM (version 2): pretraining on its training pairs and evaluation at 1 to 100 % of their labels.

Run: `fusionx pretrain --config=configs/bigearthnet_mm.py --workdir=W --config.dataset=DIR`, or any method with
`--config=configs/methods/METHOD.py:bigearthnet_mm`; the comparison with `python -m experiments.label_sweep
--config=configs/bigearthnet_mm.py --methods=… --workdir=W --dataset=DIR`.
Cost: 100 epochs of ViT-B are meant for 8 accelerators; not run here.
Protocol: the official split of reBEN (arXiv 2407.03653, section III: 237,871 training pairs), macro and micro average
precision over the whole test split, strength chosen inside the labels.
"""

from configs import default

TRAIN_PAIRS = 237_871
EPOCHS = 100


def get_config(options: str = ""):
    """`options` is not used here."""
    del options
    c = default.get_config()
    c.dataset = "runs/prepared/bigearthnet_v2/1.0.0"
    c.batch_size = 512
    c.num_steps = EPOCHS * TRAIN_PAIRS // c.batch_size
    c.optimizer.warmup_steps = c.num_steps // 20  # MAE: 40 of 800 epochs
    c.checkpoint_every = 1_000
    c.model.size = "base"
    c.model.patch_size = 8  # as CROMA's on 120 x 120 pixels (arXiv 2311.00566, section 4)
    c.model.dtype = "bfloat16"
    c.label_fractions = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    e = c.evaluate
    e.tasks = ("multi", "pixel")
    e.evaluators = ("linear_probe", "knn", "finetune", "segment_linear")
    e.shots = (1, 5, 10, 20, 100)
    e.zero_fill = True
    for s in (e.finetune, e.supervised):
        s.num_steps = 20_000
        s.min_steps = 1_000
        s.eval_every = 500
        s.val_tiles = 10_000
    return c
