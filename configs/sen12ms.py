"""SEN12MS: pretraining on its training pairs and evaluation on its scene and pixel labels.

Run: `fusionx pretrain --config=configs/sen12ms.py --workdir=W --config.dataset=DIR`, or any method with
`--config=configs/methods/METHOD.py:sen12ms`; the comparison with `python -m experiments.label_sweep
--config=configs/sen12ms.py --methods=… --workdir=W --dataset=DIR`.
Cost: 100 epochs of ViT-B are meant for 8 accelerators; not run here.
Protocol: the scene-wise split of the classification benchmark (arXiv 2104.00704: 162,556 of 180,662 pairs are training
ones), 128 x 128 crops as large as what is judged; single-label accuracy and mIoU of simplified IGBP classes.
"""

from configs import default

TRAIN_PAIRS = 162_556
EPOCHS = 100


def get_config(options: str = ""):
    """`options` is not used here."""
    del options
    c = default.get_config()
    c.dataset = "runs/prepared/sen12ms/1.0.0"
    c.batch_size = 512
    c.num_steps = EPOCHS * TRAIN_PAIRS // c.batch_size
    c.optimizer.warmup_steps = c.num_steps // 20  # MAE: 40 of 800 epochs
    c.checkpoint_every = 1_000
    c.augment.crop = 128
    c.model.size = "base"
    c.model.patch_size = 16
    c.model.dtype = "bfloat16"
    c.label_fractions = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    e = c.evaluate
    e.tasks = ("multi", "single", "pixel")
    e.evaluators = ("linear_probe", "knn", "finetune", "segment_linear", "segment_decoder")
    e.shots = (1, 5, 10, 20, 100)
    e.zero_fill = True
    e.batch_size = 64
    for s in (e.finetune, e.supervised):
        s.num_steps = 20_000
        s.min_steps = 1_000
        s.eval_every = 500
        s.val_tiles = 5_000
    return c
