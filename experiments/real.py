"""The comparison of methods on real data: `python -m experiments.real --raw=DIR`, which `make real-cpu` runs.

DIR holds `oscd` and `bigearthnet120`, in the layouts of data/oscd/README.md and
data/paired_scenes/bigearthnet_patches.yaml. The sets are prepared, every method of configs/real.py is pretrained on
OSCD with every seed and evaluated on both sets, which share the weights. Run again, it does only what is missing.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from configs import real
from fusionx_jax import progress
from fusionx_jax.errors import InputError, RunError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_BANDS = "B02,B03,B04,B08"  # the optical bands that both sets have


class Prepared(NamedTuple):
    """A prepared set: its folder below `--prepared`, its name, and the arguments of `data.prepare`, after `--raw`."""

    folder: str
    name: str
    raw: str
    arguments: tuple[str, ...]


# Training takes random crops of 32 pixels from tiles of 64; OSCD is evaluated on tiles of 32.
TRAINING = Prepared("oscd_64", "oscd", "oscd", ("oscd", "--tile_size=64", f"--s2_bands={_BANDS}"))
EVALUATED = {
    "oscd": Prepared("oscd_32", "oscd", "oscd", ("oscd", "--tile_size=32", f"--s2_bands={_BANDS}")),
    "bigearthnet_patches": Prepared(
        "bigearthnet_40", "bigearthnet_patches", "bigearthnet120",
        ("paired_scenes", "--spec=data/paired_scenes/bigearthnet_patches.yaml", "--tile_size=40",
         "--fingerprint=content"),
    ),
}  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.real", description=__doc__.splitlines()[0])
    parser.add_argument("--raw", required=True, metavar="DIR", help="folder with oscd and bigearthnet120")
    parser.add_argument("--workdir", default="runs/real", metavar="W", help="folder of weights and results")
    parser.add_argument("--prepared", default="runs/prepared/real", metavar="DIR", help="folder of the prepared sets")
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs at a time, each on its share of the cores (default 2)"
    )
    parser.add_argument("--tuning", action="store_true", help="tune the learning rates instead")
    parser.add_argument("--methods", default="", metavar="A,B", help="methods, instead of those of configs/real.py")
    parser.add_argument("--seeds", type=int, default=0, help="pretraining seeds, instead of those of configs/real.py")
    args, overrides = parser.parse_known_args(argv)
    if not os.path.isdir(args.raw):
        raise InputError(f"There is no folder {args.raw}; --raw must name the folder with oscd and bigearthnet120.")
    args.raw, args.prepared = os.path.abspath(args.raw), os.path.abspath(args.prepared)
    workdir = os.path.abspath(os.path.join(args.workdir, "tuning") if args.tuning else args.workdir)
    trained_on = _prepare(args, TRAINING)
    for name, arguments in real.TUNING if args.tuning else real.SWEEPS:
        chosen = [*arguments, *([f"--methods={args.methods}"] if args.methods else [])]
        chosen += [f"--seeds={args.seeds}"] if args.seeds else []
        folder = os.path.join(workdir, name)
        sweep = [
            "experiments.label_sweep", "--config=configs/real.py", f"--dataset={_prepare(args, EVALUATED[name])}",
            f"--train_on={trained_on}", f"--weights={os.path.join(workdir, 'weights')}", f"--workdir={folder}",
            f"--jobs={args.jobs}", *chosen, *overrides,
        ]  # fmt: skip
        _run(sweep)
        _run(["fusionx_jax", "report", f"--workdir={folder}"])
    return 0


def _prepare(args: argparse.Namespace, prepared: Prepared) -> str:
    """The directory of a prepared set, which is prepared if it is not there."""
    name, *options = prepared.arguments
    out = os.path.join(args.prepared, prepared.folder)
    directory = os.path.join(out, prepared.name, "1.0.0")
    if not os.path.exists(os.path.join(directory, "contract.json")):
        _run(["data.prepare", name, f"--raw={os.path.join(args.raw, prepared.raw)}", *options, f"--out={out}"])
    return directory


def _run(arguments: Sequence[str]) -> None:
    """Runs a module of the project.

    Raises:
      RunError: it failed.
    """
    status = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT).returncode
    if status:
        raise RunError(f"{' '.join(arguments[:2])} ended with status {status}; run the same command again to resume.")


if __name__ == "__main__":
    from fusionx_jax import __main__ as command_line

    progress.setup_logging()
    sys.exit(command_line.guarded(main, sys.argv[1:]))
