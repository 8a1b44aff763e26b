"""The label-ratio sweep in full: every floor, every seed, then the report.

`python -m experiments.label_sweep --workdir=W --dataset=DIR [--config.KEY=VALUE …]` evaluates a pretrained workdir with
the evaluation settings of configs/default.py, whatever reduced ones its own config has.
"""

import argparse
import sys

from configs import default
from fusionx_jax import __main__ as command_line


def full_settings() -> list[str]:
    """Overrides that bring every reduced setting of an evaluation to its default; what is judged stays as it is."""
    kept = ("pooling", "selection", "statistics", "subset_dir", "supervised", "batch_size")
    e = default.evaluation()
    settings = {f"evaluate.{k}": e[k] for k in e if k not in kept}
    settings |= {f"evaluate.supervised.{k}": v for k, v in e.supervised.items()}
    return [f"--config.{k}={v!r}" for k, v in settings.items()]


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
