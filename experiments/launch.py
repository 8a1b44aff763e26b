"""One command, anywhere: `python -m experiments.launch TARGET --config=… --workdir=…`.

TARGET is `local` (processes on this machine), `slurm`, `jobset` (Kubernetes), `skypilot` or `tpu` (queued resources).
Job files are written to WORKDIR/launch, plain and reviewable, then submitted with the scheduler's own tool; `--dry_run`
stops before that. The same command again finds the submitted job (a second local run in a workdir is refused), or
resumes from the newest checkpoint.
"""

import argparse
import itertools
import os
import re
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments import render

_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse_known_args(argv)
    from experiments import render, run_local, submit  # late: `--help` answers at once
    from fusionx_jax.errors import InputError

    check_arguments(args, overrides)
    workdir = os.path.abspath(args.workdir)
    commands = points(args, overrides, workdir)
    job = make_job(args, commands, workdir)
    if args.target == "local":
        if args.dry_run:
            for command in commands:
                print(shlex.join([sys.executable, "-m", *command]))
            return 0
        return run_local.run(job)
    rendered, name = render.TARGETS[args.target]
    text = rendered(job)
    path = os.path.join(job.folder, name)
    submit.write(path, text)
    print(f"{path}:\n\n{text}")
    if args.dry_run:
        return 0
    tool = submit.TOOLS[args.target]
    if not shutil.which(tool):
        raise InputError(f"{tool} is not installed here; submit {path} on a machine that has it.")
    return submit.submit(args.target, job, path)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.launch",
        description="Runs pretraining or evaluation on this machine, Slurm, Kubernetes, SkyPilot or TPU.",
        epilog="Config values are set with --config.KEY=VALUE, as everywhere.",
    )
    parser.add_argument("target", choices=["local", "slurm", "jobset", "skypilot", "tpu"])
    parser.add_argument("--command", default="pretrain", choices=["pretrain", "evaluate"])
    parser.add_argument("--config", default="", metavar="FILE[:options]", help="config file, for pretrain")
    parser.add_argument(
        "--workdir", required=True, metavar="W", help="workdir of the run; sweep points get folders in it"
    )
    parser.add_argument("--dataset", default="", metavar="DIR", help="prepared set")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="a run for each value; several options: all combinations",
    )
    parser.add_argument("--dry_run", action="store_true", help="write the job file, submit nothing")
    parser.add_argument("--name", default="", help="job name (from the workdir)")
    machines = parser.add_argument_group("machines")
    machines.add_argument("--accelerator", default="gpu", choices=["cpu", "gpu", "tpu"])
    machines.add_argument("--nodes", type=int, default=1, help="machines (1)")
    machines.add_argument(
        "--processes_per_node", type=int, default=1, help="processes per machine: one, or one per GPU (1)"
    )
    machines.add_argument(
        "--devices_per_node", type=int, default=8, help="GPUs per machine; simulated ones on a CPU (8)"
    )
    machines.add_argument("--cpus", type=int, default=32, help="cores per machine (32)")
    machines.add_argument("--kind", default="H100", help="SkyPilot: GPU (H100)")
    machines.add_argument("--topology", default="", metavar="GEN:GRID", help="TPU: chips, e.g. v5e:16x16")
    machines.add_argument("--zone", default="", help="TPU: zone")
    machines.add_argument("--on_demand", action="store_true", help="SkyPilot, TPU: not preemptible")
    machines.add_argument(
        "--source", default="", metavar="DIR", help="checkout on the machines (this one; /workspace in images)"
    )
    machines.add_argument(
        "--python", default="", help="interpreter on the machines (this one; `python` in images and clouds)"
    )
    machines.add_argument(
        "--volume",
        default="",
        metavar="SOURCE:PATH",
        help="jobset, skypilot, tpu: storage with the workdir (a claim, a bucket), mounted at PATH",
    )
    machines.add_argument("--image", default="", help="Kubernetes: image with this checkout")
    machines.add_argument(
        "--time", default="24:00:00", help="Slurm: limit; the job requeues itself before it (24:00:00)"
    )
    machines.add_argument("--partition", default="", help="Slurm")
    machines.add_argument("--account", default="", help="Slurm")
    machines.add_argument("--at_once", type=int, default=4, help="Slurm: runs of a sweep at a time (4)")
    return parser


def check_arguments(args: argparse.Namespace, overrides: list[str]) -> None:
    """Refuses arguments that are unknown, out of range or contradict each other.

    Raises:
      InputError: the first such argument.
    """
    from fusionx_jax.errors import InputError

    unknown = [o for o in overrides if not o.startswith("--config.")]
    if unknown:
        raise InputError(f"The argument {unknown[0]!r} is unknown; see --help.")
    counts = ("nodes", "processes_per_node", "devices_per_node", "cpus", "at_once")
    too_small = [f"--{k}" for k in counts if getattr(args, k) < 1]
    if too_small:
        raise InputError(f"{', '.join(too_small)} must be at least 1.")
    if args.command == "pretrain" and not args.config:
        raise InputError("--command=pretrain needs --config=FILE.")
    if args.accelerator == "gpu" and args.devices_per_node % args.processes_per_node:
        raise InputError(
            f"--devices_per_node={args.devices_per_node} GPUs cannot be divided evenly among "
            f"--processes_per_node={args.processes_per_node}."
        )
    if args.command == "evaluate" and args.nodes * args.processes_per_node > 1:
        raise InputError(
            "evaluate runs as one process (it uses all its devices); give --nodes=1 --processes_per_node=1."
        )
    if args.target == "local" and args.nodes > 1:
        raise InputError("local is this machine: --nodes must be 1; use --processes_per_node.")


def make_job(args: argparse.Namespace, commands: list[list[str]], workdir: str) -> "render.Job":
    """The job of the arguments, with the target's interpreter, checkout and accelerator filled in."""
    from experiments import render

    source = args.source or ("/workspace" if args.target == "jobset" else _CHECKOUT)
    if args.target in ("local", "slurm"):  # the machines share this machine's file system
        python = sys.executable
    else:
        python = "python3" if args.target == "tpu" else "python"
    return render.Job(
        name=args.name or job_name(workdir),
        commands=tuple(tuple(c) for c in commands),
        folder=os.path.join(workdir, "launch"),
        source=source,
        python=args.python or python,
        accelerator="tpu" if args.target == "tpu" else args.accelerator,
        nodes=args.nodes,
        processes_per_node=args.processes_per_node,
        devices_per_node=args.devices_per_node,
        cpus=args.cpus,
        time=args.time,
        partition=args.partition,
        account=args.account,
        at_once=args.at_once,
        image=args.image,
        topology=args.topology,
        kind=args.kind,
        zone=args.zone,
        spot=not args.on_demand,
        volume=args.volume,
    )


def job_name(workdir: str) -> str:
    """A job name from a workdir's last two folders, in the characters that schedulers accept."""
    tail = "-".join(workdir.strip("/").split("/")[-2:])
    return "fusionx-" + re.sub(r"[^a-z0-9]+", "-", tail.lower()).strip("-")[-40:].strip("-")


def points(args: argparse.Namespace, overrides: list[str], workdir: str) -> list[list[str]]:
    """The arguments after `python -m` of every sweep point, each pretraining with a workdir of its own."""
    from fusionx_jax.errors import InputError
    from fusionx_jax.prepared import remote

    axes = {}
    for text in args.sweep:
        key, equals, values = text.partition("=")
        if not (key and equals and values):
            raise InputError(f"--sweep={text!r} is not valid; give KEY=A,B, e.g. --sweep=seed=0,1,2.")
        axes[key] = values.split(",")
    dataset = remote.absolute(args.dataset) if args.dataset else ""
    if args.command == "evaluate":
        if not dataset:
            raise InputError("--command=evaluate needs --dataset=DIR.")
        # One process measures all fractions: they share features, and what it measured is kept cell by cell.
        fractions = axes.pop("label_fraction", [])
        if axes:
            raise InputError(f"evaluate is swept over label_fraction alone, not {', '.join(axes)}.")
        more = [f"--config.label_fractions=({','.join(fractions)},)"] if fractions else []
        return [["fusionx_jax", "evaluate", f"--workdir={workdir}", f"--dataset={dataset}", *overrides, *more]]
    if "label_fraction" in axes:
        raise InputError("label_fraction is swept with --command=evaluate: pretraining uses no labels.")
    file, colon, options = args.config.partition(":")
    if not os.path.isfile(file):
        raise InputError(f"There is no config file {file}; those that come with the project are in configs/.")
    file = os.path.abspath(file)
    if file.startswith(_CHECKOUT + os.sep):  # the job runs in a checkout, wherever that is
        file = os.path.relpath(file, _CHECKOUT)
    config = f"--config={file}{colon}{options}"
    given = [f"--config.dataset={dataset}"] if dataset else []
    out = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values))
        place = os.path.join(workdir, *(["_".join(f"{k}={v}" for k, v in point.items())] if point else []))
        settings = [f"--config.{k}={v}" for k, v in point.items()]
        out.append(["fusionx_jax", "pretrain", config, f"--workdir={place}", *given, *overrides, *settings])
    return out


if __name__ == "__main__":
    from fusionx_jax import __main__ as command_line

    sys.exit(command_line.guarded(main, sys.argv[1:]))
