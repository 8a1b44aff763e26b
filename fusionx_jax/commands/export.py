"""`fusionx export`: parses its arguments and writes one export."""

import argparse
import json


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx export",
        description="Exports a trained encoder, and compares the export with the original on tiles.",
    )
    parser.add_argument("--workdir", required=True, metavar="W", help="workdir of `fusionx pretrain`, or a checkpoint")
    parser.add_argument("--to", required=True, choices=("orbax", "safetensors", "stablehlo"))
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument("--dataset", default="", metavar="DIR", help="prepared set to compare on (the run's own)")
    parser.add_argument("--with_decoder", action="store_true", help="keep the decoder too (orbax, safetensors)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference (1e-4)")
    args = parser.parse_args(argv)
    from fusionx_jax.interop import export

    report = export.export(args.workdir, args.to, args.out, args.dataset, args.with_decoder, args.tolerance)
    print(json.dumps(report, indent=1))
    return 0
