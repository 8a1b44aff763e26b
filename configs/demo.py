"""The demo: FusionX-Net mini on 10,000 simulated pairs, judged at 1 to 100 % of the labels, on two CPU cores.

Run: `make demo`, or step by step as the README shows.
Cost: see the README; about 9 minutes on two cores.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(options: str = "") -> ConfigDict:
    del options
    c = default.get_config()
    c.dataset = "runs/prepared/simulated/1.0.0"
    c.num_steps = 480
    c.batch_size = 128
    c.checkpoint_every = 120
    c.keep_checkpoints = 2
    c.log_every = 10
    c.model.size = "mini"
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_steps = 40
    return c
