"""Comparison of methods overnight on two CPU cores: simulated tiles, the network of the demo, 500 steps.

Run: `make paper-cpu` (all of SWEEPS), or one method:
`fusionx pretrain --config=configs/methods/croma.py:paper_cpu --workdir=W`.
Cost: about 2 minutes for one pretraining run on one core.
Result: experiments/results/README.md.
"""

from ml_collections import ConfigDict

from configs import demo

# Peak learning rate per 256 pairs, by method: the best of those tried, or one within 0.3 points of it on average.
# experiments/results/tuning.csv has 6e-3 to 24e-3 for every method, 48e-3 where 24e-3 was the best, and 3e-3 where 6e-3
# was; TUNING tries all rates with all methods. The README there lists further tuning of FusionX-Net.
RATES = (3e-3, 6e-3, 12e-3, 24e-3, 48e-3)
LEARNING_RATES = {
    "fusionx": 12e-3,
    "fusionx_early": 24e-3,
    "mae_s1": 24e-3,
    "mae_s2": 24e-3,
    "stacked_mae": 12e-3,
    "multimae": 48e-3,
    "croma": 12e-3,
    "contrastive": 6e-3,
}

METHODS = (
    "fusionx", "fusionx_early", "multimae", "croma", "stacked_mae", "mae_s1", "mae_s2", "contrastive", "untrained",
    "supervised_vit", "supervised_resnet",
)  # fmt: skip
# The additions of the default to early fusion one by one, then masking, place of the cross-attention, mask ratio,
# decoder context and target.
ABLATIONS = (
    "fusionx/model.own_share=0.0",
    "fusionx/model.contrastive=False",
    "fusionx/model.decoder_context=others",
    "fusionx/masking=consistent",
    "fusionx/mask_ratio=0.6",
    "fusionx/mask_ratio=0.9",
    *(f"fusionx_early/masking={m}" for m in ("consistent", "complementary", "dirichlet", "block", "modality_drop")),
    *(f"fusionx_early/model.cross_attention={where}{m}" for where in ("none", "encoder", "decoder")
      for m in ("", "/masking=consistent")),
    "fusionx_early/mask_ratio=0.6",
    "fusionx_early/mask_ratio=0.9",
    "fusionx_early/model.decoder_context=all",
    "fusionx_early/target=raw",
)  # fmt: skip
_BOTH_SENSORS = "--config.evaluate.modalities=('s1+s2',)"
_PROBE = ("--config.evaluate.tasks=('multi',)", "--config.evaluate.evaluators=('linear_probe',)")
# Arguments of the `experiments.label_sweep` commands that `make paper-cpu` runs in turn.
SWEEPS = (
    ("--seeds=3", f"--methods={','.join(METHODS)}"),
    # Few-shot subsets; missing modalities filled with zeros; pixel labels; fine-tuning; ablations.
    ("--seeds=3", "--methods=fusionx,croma,untrained", _BOTH_SENSORS, *_PROBE,
     "--config.evaluate.shots=(1,5,10,20,100)"),
    ("--methods=fusionx", *_PROBE, "--config.evaluate.modalities=('s1','s2')", "--config.evaluate.zero_fill=True"),
    ("--methods=fusionx,croma,untrained", _BOTH_SENSORS, "--config.evaluate.tasks=('pixel',)",
     "--config.evaluate.evaluators=('segment_linear','segment_decoder','ridge_cover')"),
    ("--methods=fusionx,croma", _BOTH_SENSORS, "--config.evaluate.tasks=('multi',)",
     "--config.evaluate.evaluators=('finetune',)"),
    (f"--methods={','.join(ABLATIONS)}", _BOTH_SENSORS, *_PROBE),
)  # fmt: skip
# `make paper-cpu-tuning`: every method, one seed, evaluated by the probe on the validation split.
TUNING = (
    (f"--methods={','.join(f'{m}/optimizer.learning_rate={r:g}' for m in LEARNING_RATES for r in RATES)}", *_PROBE,
     "--config.evaluate.score_split=val", "--config.label_fractions=(0.01,0.1,1.0)"),
)  # fmt: skip


def get_config(options: str = "") -> ConfigDict:
    """`options` is not used here."""
    del options
    c = demo.get_config()
    c.num_steps = 500
    c.optimizer.warmup_steps = 50
    c.checkpoint_every = 500
    c.keep_checkpoints = 1
    c.label_fractions = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)

    e = c.evaluate
    e.evaluators = ("linear_probe", "linear_probe_each", "knn")
    e.bootstrap = 300
    s = e.supervised
    s.tasks = ("multi",)
    s.seeds = 2
    s.batch_size = 32
    s.num_steps = c.num_steps  # as pretraining, with the same batch size
    s.min_steps = 100
    s.eval_every = 50
    s.learning_rates = (1e-3, 3e-3, 1e-2)
    f = e.finetune
    f.update({k: s[k] for k in ("tasks", "batch_size", "eval_every", "learning_rates")})
    f.seeds = 1
    f.num_steps, f.min_steps = 200, 60
    e.segmentation.seeds = 1
    e.segmentation.num_steps = 150
    return c


if __name__ == "__main__":  # for the Makefile
    import shlex
    import sys

    print("\n".join(map(shlex.join, TUNING if sys.argv[1:] == ["tuning"] else SWEEPS)))
