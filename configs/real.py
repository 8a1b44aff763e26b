"""Comparison of methods on real data, overnight on two CPU cores: pretrained on OSCD, evaluated there and elsewhere.

Run: `make real-cpu REAL=DIR` (all of SWEEPS; data/oscd/README.md says where the data are), or one method:
`fusionx pretrain --config=configs/methods/croma.py:real --workdir=W --config.dataset=DIR`.
Cost: 20 to 35 minutes for one pretraining run on one core.
Result: experiments/results/real/README.md.
"""

from ml_collections import ConfigDict

from configs import default, demo

# Peak learning rate per 256 pairs, by method, of the values of RATES. TUNING tries all of them with all methods.
RATES = (6e-3, 12e-3, 24e-3)
LEARNING_RATES = {
    "fusionx": 24e-3,
    "croma": 12e-3,
    "multimae": 24e-3,
    "multimae_contrastive": 24e-3,
    "mae_pair": 24e-3,
    "stacked_mae": 12e-3,
    "contrastive": 6e-3,
}

METHODS = (*LEARNING_RATES, "untrained")
# Arguments of `experiments.label_sweep`, by the prepared set on which methods are evaluated. OSCD's optical images are
# of level L1C, BigEarthNet's of L2A: the statistics of the evaluated set normalize it.
EVALUATIONS = {
    "bigearthnet_patches": (
        "--config.evaluate.tasks=('multi',)", "--config.evaluate.any_level=True",
        "--config.evaluate.statistics=dataset",
    ),
    "oscd": ("--config.evaluate.tasks=('change',)",),
}  # fmt: skip
SWEEPS = tuple(
    (name, ("--seeds=5", f"--methods={','.join(METHODS)}", *options)) for name, options in EVALUATIONS.items()
)
# `make real-cpu-tuning`: every rate with every method, one seed, a quarter of the steps, seeds of its own.
TUNING = tuple(
    (name, (f"--methods={','.join(f'{m}/optimizer.learning_rate={r:g}' for m in LEARNING_RATES for r in RATES)}",
            "--config.num_steps=2000", "--config.optimizer.warmup_steps=200", *options))
    for name, options in EVALUATIONS.items()
)  # fmt: skip


def get_config(options: str = "") -> ConfigDict:
    """`options` is not used here."""
    del options
    c = demo.get_config()
    c.dataset = "runs/prepared/real/oscd_64/oscd/1.0.0"
    c.num_steps = 8000
    c.optimizer.warmup_steps = 400  # 5 %, as MAE (arXiv 2111.06377, table 8)
    c.checkpoint_every = 2000
    c.keep_checkpoints = 1
    c.log_every = 100
    c.augment.crop = 32
    # Selected in trials with one seed (experiments/results/real/tried.md), for all methods alike.
    c.model.patch_size = 4
    c.mask_ratio = 0.75
    c.contrast.weight = 0.3
    c.label_fractions = (0.01, 0.05, 0.1, 0.5, 1.0)

    e = c.evaluate = default.evaluation()
    e.evaluators = ("linear_probe", "linear_probe_apart", "linear_probe_components")
    e.folds = 5
    e.baselines = ("band_statistics", "texture", "texture_forest", "difference_of_means", "change_vector")
    e.batch_size = 64
    e.cv_folds = 3
    e.bootstrap = 1000
    e.regularization = demo.get_config().evaluate.regularization
    return c
