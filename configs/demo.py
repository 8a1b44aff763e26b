"""The demo: FusionX-Net mini on 10,000 simulated pairs, judged at 1 to 100 % of the labels, on two CPU cores.

Run: `make demo`, or step by step as the README shows.
Result: docs/demo.md.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(options: str = "") -> ConfigDict:
    del options
    c = default.get_config()
    c.dataset = "runs/prepared/simulated/1.0.0"
    c.num_steps = 600
    c.batch_size = 64
    c.checkpoint_every = 150
    c.keep_checkpoints = 2
    c.log_every = 10
    c.mask_ratio = 0.8
    c.model.size = "mini"
    # Chosen on this world among 3e-3 to 16e-3; short runs want high rates. The table is in docs/demo.md.
    c.optimizer.learning_rate = 16e-3
    c.optimizer.warmup_steps = 60
    c.evaluate.bootstrap = 200
    # The slow floor is cut down here, and says so; `make sweep` runs it in full.
    c.evaluate.supervised.tasks = ("multi",)
    c.evaluate.supervised.seeds = 1
    c.evaluate.supervised.batch_size = 16
    c.evaluate.supervised.num_steps = 100
    c.evaluate.supervised.min_steps = 40
    c.evaluate.supervised.eval_every = 20
    c.evaluate.supervised.val_tiles = 200
    c.evaluate.supervised.learning_rates = (1e-3,)
    return c
