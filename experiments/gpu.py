"""Measurements for an accelerator that is lent for minutes: `python -m experiments.gpu --out=DIR --minutes=10`.

First the train step of ViT-B in bfloat16, in turns with its PyTorch twin, eager and compiled (where PyTorch is
installed). Then, where --dataset names a prepared set, as much of a comparison of methods over pretraining seeds as the
time allows: several small networks train at once on one device. DIR gets `bench.json`, and `sweep` with its tables and
page, which `python -m experiments.label_sweep` continues elsewhere. TensorFlow is not needed.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from fusionx_jax import files, progress
from fusionx_jax.errors import InputError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STOP_S = 20.0  # for a sweep to stop its runs, and for its report
_LEAST_SWEEP_S = 60.0  # a sweep with less time finishes no run


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for everything (default 10)")
    parser.add_argument(
        "--bench", default="configs/speed.py:base", metavar="FILE", help="config of the train step (default ViT-B)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each alternative (default 5)")
    parser.add_argument("--dataset", default="", metavar="DIR", help="prepared set to compare methods on")
    parser.add_argument("--train_on", default="", metavar="DIR", help="prepared set to pretrain on, if another")
    parser.add_argument("--config", default="configs/real.py", metavar="FILE", help="base config of the comparison")
    parser.add_argument("--methods", default="fusionx,croma,untrained", metavar="A,B")
    parser.add_argument("--seeds", type=int, default=5, help="pretraining seeds (default 5)")
    parser.add_argument("--jobs", type=int, default=4, help="runs at a time (default 4)")
    args, overrides = parser.parse_known_args(argv)
    if args.minutes <= 0 or args.rounds < 1:
        raise InputError(f"--minutes is {args.minutes} and --rounds {args.rounds}; both must be positive.")
    deadline = time.monotonic() + 60 * args.minutes
    files.makedirs(args.out)
    _bench(args, deadline)
    if args.dataset:
        _sweep(args, overrides, deadline)
    return 0


def _bench(args: argparse.Namespace, deadline: float) -> None:
    """Writes `bench.json`, or why there is none: the comparison is worth running without it."""
    peers = ["--peer=torch", "--peer=torch.compile"] if importlib.util.find_spec("torch") else []
    command = ["fusionx_jax", "bench", "train", "--json", f"--config={args.bench}", f"--rounds={args.rounds}", *peers]
    left = deadline - time.monotonic()
    try:
        done = subprocess.run(_python(command), cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=left, check=False)
        found = json.loads(done.stdout) if not done.returncode else {"failed": f"status {done.returncode}"}
    except subprocess.TimeoutExpired:
        found = {"failed": f"not finished after {left:.0f} s"}
    with files.replacing(os.path.join(args.out, "bench.json")) as f:
        json.dump(found, f, indent=1)
    print(json.dumps(found))


def _sweep(args: argparse.Namespace, overrides: Sequence[str], deadline: float) -> None:
    """Runs the comparison until it is done or time is up, then makes the page of the runs that have finished."""
    folder = os.path.join(os.path.abspath(args.out), "sweep")
    left = deadline - time.monotonic() - _STOP_S
    if left < _LEAST_SWEEP_S:
        progress.logger.warning("There are %.0f s left for the comparison; it is not started.", max(left, 0))
        return
    command = [
        "experiments.label_sweep", f"--config={args.config}", f"--methods={args.methods}", f"--seeds={args.seeds}",
        f"--dataset={args.dataset}", f"--workdir={folder}", f"--jobs={args.jobs}",
        *([f"--train_on={args.train_on}"] if args.train_on else []), *overrides,
    ]  # fmt: skip
    # Several processes share the device: none may take all of its memory.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(_python(command), cwd=ROOT, env=environment)
    try:
        process.wait(timeout=left)
    except subprocess.TimeoutExpired:
        progress.logger.info("Time is up: the comparison stops; its finished runs are reported.")
        process.send_signal(signal.SIGTERM)
        process.wait()
    subprocess.run(_python(["fusionx_jax", "report", f"--workdir={folder}"]), cwd=ROOT, check=False)


def _python(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", *arguments]


if __name__ == "__main__":
    from fusionx_jax import __main__ as command_line

    progress.setup_logging()
    sys.exit(command_line.guarded(main, sys.argv[1:]))
