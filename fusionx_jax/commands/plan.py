"""`fusionx plan`: parses its arguments and prints the estimate of one run."""

import argparse
import json

from fusionx_jax.chips import CHIPS
from fusionx_jax.errors import InputError


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx plan",
        description="Estimates memory, FLOPs, communication and days of a run by compiling its train step for machines "
        "that need not be available here.",
        epilog="Config values are set with --config.KEY=VALUE.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:options]")
    parser.add_argument("--topology", default="", metavar="GEN:GRID", help="TPU slice in chips: v5e:16x16, v4:4x4x4")
    parser.add_argument("--devices", type=int, default=8, help="number of GPUs (8)")
    parser.add_argument("--kind", default="h100", help=f"of the GPUs: {', '.join(CHIPS)} (h100)")
    parser.add_argument(
        "--dataset", default="", metavar="DIR", help="prepared set; without it Sentinel tiles are assumed"
    )
    parser.add_argument("--tile_size", type=int, default=120, help="side of assumed tiles in pixels (120)")
    parser.add_argument("--pairs", type=int, default=0, help="training pairs in an epoch (default: the set's)")
    parser.add_argument(
        "--input_rate", type=float, default=2000, help="MB/s that a host reads; see `fusionx bench input` (2000)"
    )
    parser.add_argument("--epochs", type=float, default=100, help="length of the run (100)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, overrides = parser.parse_known_args(argv)
    from fusionx_jax import config as config_lib
    from fusionx_jax import progress
    from fusionx_jax.contract import assumed
    from fusionx_jax.plan import machine as machine_lib

    config = config_lib.override(config_lib.load_file(args.config), overrides)
    if args.tile_size < 1 or min(args.epochs, args.input_rate) <= 0 or args.pairs < 0:
        raise InputError("--tile_size, --epochs and --input_rate must be positive, --pairs not negative.")
    machine = machine_lib.find(args.topology, args.devices, args.kind)  # before JAX is initialized
    from fusionx_jax.plan import estimate, text

    if args.dataset:
        from fusionx_jax.prepared import sets

        contract = sets.open_for(config, args.dataset).contract
    else:
        contract = assumed(config.modalities, args.tile_size, args.pairs, dict(config.get("band_groups", {})))
    progress.logger.info("Compiling for %d devices …", len(machine.devices))
    found = estimate.plan(config, contract, machine, 1e6 * args.input_rate)
    pairs = args.pairs or contract.splits.get("train", 0)
    found["days"] = pairs * args.epochs / found["pairs_per_s"] / 86_400 if pairs else None
    found["machine"] = args.topology or f"{args.devices} x {args.kind} (simulated by the CPU compiler)"
    print(json.dumps(found, indent=1) if args.json else text.show(found, found["machine"], args.epochs))
    return 0 if found["fits"] else 1
