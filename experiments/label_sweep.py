"""The comparison of methods over label fractions: pretrain, evaluate, compare, one command.

`python -m experiments.label_sweep --config=configs/paper_cpu.py --methods=fusionx,croma,untrained --workdir=W
--dataset=DIR` pretrains every method with every seed, measures the cells that the config's `evaluate` asks for, and
writes W/results.csv, differences.csv, labels_needed.csv and methods.csv. Run again, or with more methods, seeds or
evaluators, it does only what is missing. Then `fusionx report --workdir=W` draws the figures and the page.

With --train_on the weights are pretrained on another set than the one that is evaluated, and with --weights they are
kept in a folder of their own, where comparisons on several sets share them.

A method is a file of configs/methods/, with changes after slashes where an ablation wants them:
`fusionx/masking=consistent/model.cross_attention=encoder`.
"""

import argparse
import os
import sys


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.label_sweep",
        description="Pretrains methods, evaluates them over label fractions, compares them; does only what is missing.",
        epilog="Values of every method's config are overridden with --config.KEY=VALUE.",
    )
    parser.add_argument("--config", default="configs/default.py", metavar="FILE", help="base config of configs/")
    parser.add_argument(
        "--methods",
        required=True,
        metavar="A,B",
        help="files of configs/methods/, with changes: fusionx/mask_ratio=0.9",
    )
    parser.add_argument("--seeds", type=int, default=1, help="pretraining seeds (default 1)")
    parser.add_argument("--workdir", required=True, metavar="W", help="folder of the whole comparison")
    parser.add_argument("--dataset", required=True, metavar="DIR", help="prepared set to pretrain and evaluate on")
    parser.add_argument("--train_on", default="", metavar="DIR", help="prepared set to pretrain on, if another")
    parser.add_argument(
        "--weights", default="", metavar="W", help="folder of the pretrainings, to share them between comparisons"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each on its share of the cores (default 1)"
    )
    parser.add_argument("--only_seed", type=int, default=None, help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args(argv)
    from experiments import sweep  # late: `--help` answers at once
    from fusionx_jax.errors import InputError
    from fusionx_jax.evaluate.records import parse_method
    from fusionx_jax.prepared import remote

    if args.seeds < 1 or args.jobs < 1:
        raise InputError(f"--seeds is {args.seeds} and --jobs {args.jobs}; both must be at least 1.")
    args.workdir = os.path.abspath(args.workdir)
    args.dataset = remote.absolute(args.dataset)
    args.train_on = args.train_on and remote.absolute(args.train_on)
    args.weights = args.weights and os.path.abspath(args.weights)
    if args.only_seed is not None:
        run = sweep.Run(parse_method(args.methods), args.only_seed)
        return sweep.run_one(args, run, overrides)
    return sweep.run_all(args, overrides)


if __name__ == "__main__":
    from fusionx_jax import __main__ as command_line

    sys.exit(command_line.guarded(main, sys.argv[1:]))
