"""`fusionx pretrain`: parses its arguments and runs one pretraining."""

import argparse

from fusionx_jax import arguments


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx pretrain",
        description="Pretrains FusionX-Net on a prepared set. Run again, it resumes from the newest checkpoint.",
        epilog="Any config value is set with --config.KEY=VALUE, e.g. --config.masking=consistent.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:options]", help="config file, e.g. configs/demo.py")
    parser.add_argument("--workdir", required=True, metavar="W", help="where checkpoints, metrics and logs go")
    arguments.add_distributed(parser)
    args, overrides = parser.parse_known_args(argv)
    from fusionx_jax import config as config_lib
    from fusionx_jax import distributed, pretrain

    with distributed.job(args):
        config = config_lib.override(config_lib.load_file(args.config), overrides)
        return pretrain.run(config, args.workdir)
