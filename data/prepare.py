"""`python -m data.prepare NAME --out=DIR`: raw data to a prepared set. Prints the set's directory last."""

import argparse
import shlex
import sys

from data import quality
from data.registry import DATA_SETS
from fusionx_jax import progress
from fusionx_jax.errors import InputError, RunError


def make_parser() -> argparse.ArgumentParser:
    """The options that all data sets share; the help page lists the registered ones."""
    names = "\n".join(f"  {name:15} {data_set.summary}" for name, data_set in DATA_SETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description="Turns raw satellite data into a prepared set: checked, tiled, quick to read.",
        epilog=f"data sets:\n{names}\n\n`python -m data.prepare NAME --help` lists the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=tuple(DATA_SETS), metavar="NAME", help="which data set (see below)")
    parser.add_argument("--out", required=True, metavar="DIR", help="where prepared sets go; the set is DIR/NAME/1.0.0")
    parser.add_argument("--num_workers", type=int, default=None, help="worker processes (default: one per core)")
    parser.add_argument(
        "--beam", metavar="OPTIONS", help='write shards with Apache Beam, e.g. --beam="--runner=DirectRunner"'
    )
    quality.add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prepares the data set that the arguments name; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    name = next((a for a in argv if a in DATA_SETS), None)
    builder = DATA_SETS[name].builder() if name else None
    if builder:
        builder.add_arguments(parser)
    args = parser.parse_args(argv)  # ends the program without a name
    assert builder is not None
    from data import writer  # late: `--help` answers at once

    try:
        max_failures = getattr(args, "max_failures", 0.0)
        options = None if args.beam is None else shlex.split(args.beam)
        limits = quality.limits(args)
        source = builder.make_source(args)
        print(writer.prepare(source, args.out, args.num_workers, max_failures, options, limits))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Finished shards are kept; the same command resumes.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    progress.setup_logging()
    sys.exit(main())
