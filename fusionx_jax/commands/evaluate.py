"""`fusionx evaluate`: parses its arguments and measures one workdir."""

import argparse
import os
import sys

from fusionx_jax import arguments


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx evaluate",
        description="Judges a representation over label fractions and seeds, beside baselines: linear probes, and "
        "what evaluate.evaluators names.",
        epilog="Values of the run's config are overridden with --config.KEY=VALUE, e.g. --config.evaluate.seeds=3.",
    )
    parser.add_argument("--workdir", required=True, metavar="W", help="workdir of `fusionx pretrain`; results go there")
    parser.add_argument("--dataset", required=True, metavar="DIR", help="prepared set to judge on")
    arguments.add_distributed(parser)
    args, overrides = parser.parse_known_args(argv)
    from fusionx_jax import distributed, progress
    from fusionx_jax.evaluate import measure
    from fusionx_jax.evaluate import rows as rows_lib

    distributed.start(args)
    setting = measure.prepare_setting(args.workdir, args.dataset, overrides)
    if args.distributed:
        measure.check(setting.config)
        measure.encode_together(setting)
        first = distributed.is_first()
        distributed.leave()
        if not first:
            return 0
        # Fitting probes is one process's work, of a process that never was part of a job: it finds the features there.
        again = ["evaluate", f"--workdir={args.workdir}", f"--dataset={args.dataset}", *overrides]
        os.execv(sys.executable, [sys.executable, "-m", "fusionx_jax", *again])
    with progress.logging_to(os.path.join(args.workdir, "evaluate.log")):
        path = measure.evaluate(setting)
    contract = setting.prepared.contract
    print(f"{contract.title}:")
    print(measure.summary(rows_lib.select(rows_lib.read(path), dataset=contract.name)))
    print(f"Rows are in {path}. Next: fusionx report --workdir={args.workdir}")
    return 0
