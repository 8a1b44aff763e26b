"""`fusionx evaluate`: parses its arguments and measures one workdir."""

import argparse

from fusionx_jax import arguments


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx evaluate",
        description="Evaluates a representation over label fractions and seeds, beside baselines: linear probes, and "
        "the evaluators that evaluate.evaluators names.",
        epilog="Values of the run's config are overridden with --config.KEY=VALUE, e.g. --config.evaluate.seeds=3.",
    )
    parser.add_argument("--workdir", required=True, metavar="W", help="workdir of `fusionx pretrain`; results go there")
    parser.add_argument("--dataset", required=True, metavar="DIR", help="prepared set to evaluate on")
    arguments.add_distributed(parser)
    args, overrides = parser.parse_known_args(argv)
    from fusionx_jax import distributed, files
    from fusionx_jax.evaluate import evaluation, measure, rows
    from fusionx_jax.evaluate.summary import summary
    from fusionx_jax.training.workdir import logging_to

    with distributed.job(args):
        opened = evaluation.open_evaluation(args.workdir, args.dataset, overrides)
        with logging_to(files.join(args.workdir, "evaluate.log")):
            path = measure.evaluate_together(opened) if args.distributed else measure.evaluate(opened)
        if distributed.is_first():
            contract = opened.prepared.contract
            print(f"{contract.title}:")
            print(summary(rows.select(rows.read(path), dataset=contract.name)))
            print(f"Rows are in {path}. Next: fusionx report --workdir={args.workdir}")
        if args.distributed:
            distributed.leave()
    return 0
