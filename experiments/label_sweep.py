"""The label-ratio sweep in full: every floor, every seed, then the report.

`python -m experiments.label_sweep --workdir=W --dataset=DIR [--config.KEY=VALUE …]` evaluates a pretrained workdir with
the evaluation settings of configs/default.py, whatever reduced ones its own config has.
"""

import argparse
import sys

from configs import default
from fusionx_jax import __main__ as command_line


def full_settings() -> list[str]:
    """Overrides that bring the supervised floor to its full budget."""
    supervised = default.evaluation().supervised
    keys = ("seeds", "batch_size", "num_steps", "min_steps", "eval_every", "val_tiles")
    settings = [f"--config.evaluate.supervised.{k}={supervised[k]}" for k in keys]
    rates = ",".join(f"{r:g}" for r in supervised.learning_rates)
    return [*settings, f"--config.evaluate.supervised.learning_rates=({rates},)"]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.label_sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, metavar="W", help="workdir of `fusionx pretrain`")
    parser.add_argument("--dataset", required=True, metavar="DIR", help="prepared set to judge on")
    args, overrides = parser.parse_known_args(argv)
    status = command_line.main(
        ["evaluate", f"--workdir={args.workdir}", f"--dataset={args.dataset}", *full_settings(), *overrides]
    )
    return status or command_line.main(["report", f"--workdir={args.workdir}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
