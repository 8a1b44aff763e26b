"""`python -m data.prepare NAME --out=DIR`: raw data to a prepared set. Prints the set's directory last."""

import argparse
import importlib
import shlex
import sys

from fusionx_jax.errors import InputError, RunError

BUILDERS = {
    "simulated": "a simulated Sentinel-1/2 world; nothing to download",
    "paired_scenes": "any folder of co-registered scenes, described by a small YAML file",
    "bigearthnet_v1": "BigEarthNet-MM, 19 or 43 classes, multi-label",
    "bigearthnet_v2": "reBEN, with official splits and reference maps",
    "sen12ms": "four seasons, MODIS land cover",
    "dfc2020": "SEN12MS's form with better labels",
    "ssl4eo_s12": "a quarter of a million places, four seasons, no labels",
    "so2sat_lcz42": "local climate zones, HDF5",
    "sen1floods11": "hand-labeled floods",
    "eurosat": "EuroSAT with EuroSAT-SAR",
}


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    names = "\n".join(f"  {name:15} {what}" for name, what in BUILDERS.items())
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description="Turns raw satellite data into a prepared set: checked, tiled, quick to read.",
        epilog=f"data sets:\n{names}\n\n`python -m data.prepare NAME --help` lists the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(BUILDERS), metavar="NAME", help="which data set (see below)")
    parser.add_argument("--out", required=True, metavar="DIR", help="where prepared sets go; the set is DIR/NAME/1.0.0")
    parser.add_argument("--num_workers", type=int, default=None, help="worker processes (default: one a core)")
    parser.add_argument(
        "--beam", metavar="OPTIONS", help='write shards with Apache Beam, e.g. --beam="--runner=DirectRunner"'
    )
    name = next((a for a in argv if a in BUILDERS), None)
    builder = None
    if name:
        builder = importlib.import_module(f"data.{name}.builder")
        builder.add_arguments(parser)
    args = parser.parse_args(argv)
    from data import writer

    try:
        most = getattr(args, "max_failures", 0.0)
        options = None if args.beam is None else shlex.split(args.beam)
        print(writer.prepare(builder.make_source(args), args.out, args.num_workers, most, options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; finished shards are kept, and the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
