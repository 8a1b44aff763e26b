"""A small folder of real scenes, prepared as the README shows: a few hundred steps on 32 x 32 tiles.

Run: `fusionx pretrain --config=configs/scenes.py --workdir=runs/scenes` from scratch, or
`fusionx pretrain --config=configs/scenes.py:init=runs/demo --workdir=runs/scenes_from_demo` from the demo's weights.
Cost: about 2 minutes each on two CPU cores.
Result: experiments/results/README.md. A few hundred tiles test the pipeline; they support no conclusion.
"""

from ml_collections import ConfigDict

from configs import default, demo


def get_config(options: str = "") -> ConfigDict:
    """`options`: "init=WORKDIR" starts from the weights of that workdir."""
    name, _, value = options.partition("=")
    if options and name != "init":
        raise ValueError(f"There is no option {options!r}; the known one is init=WORKDIR.")
    c = demo.get_config()
    c.evaluate = default.evaluation()
    c.dataset = "runs/prepared/terramesh/1.0.0"
    c.init_from = value
    c.num_steps = 300
    c.batch_size = 32
    c.checkpoint_every = 100
    c.optimizer.warmup_steps = 30
    c.label_fractions = (0.1, 0.5, 1.0)  # 1 % of a hundred tiles is one tile
    c.evaluate.supervised.num_steps = 150
    c.evaluate.supervised.min_steps = 50
    c.evaluate.supervised.batch_size = 16
    c.evaluate.supervised.eval_every = 25
    c.evaluate.supervised.learning_rates = (1e-3,)
    c.evaluate.supervised.seeds = 2
    return c
