"""What `experiments.label_sweep` does: runs of (method, pretraining seed), each in a process of its own."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from fusionx_jax import config as config_lib
from fusionx_jax import files, pretrain, progress
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.evaluate import evaluation, measure, members, rows, settings
from fusionx_jax.evaluate.evaluators import EVALUATORS
from fusionx_jax.evaluate.records import Method, parse_method
from fusionx_jax.evaluate.sources import BASELINES
from fusionx_jax.evaluate.summary import summary
from fusionx_jax.prepared import remote, sets

_ELSEWHERE = ("train_on", "weights")  # options of pretraining on another set and in another folder
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Run(NamedTuple):
    """One pretraining of a sweep."""

    method: Method
    seed: int


def load(base: str, method: Method, overrides: Sequence[str]) -> ConfigDict:
    """A method's config on a base, with the command line's overrides and then the changes of a variant.

    Raises:
      InputError: there is no such base or method, or a change does not fit.
    """
    stem = os.path.splitext(os.path.basename(base))[0]
    inside = os.path.realpath(os.path.join(ROOT, "configs", f"{stem}.py"))
    if inside not in (os.path.realpath(base), os.path.realpath(os.path.join(ROOT, base))):
        raise InputError(
            f"--config is {base}, but methods build on a file of configs/ by its name and without options; put yours "
            "there, or change values with --config.KEY=VALUE."
        )
    path = os.path.join(ROOT, "configs", "methods", f"{method.name}.py")
    if not os.path.isfile(path) or method.name == "__init__":
        names = sorted(f[:-3] for f in os.listdir(os.path.dirname(path)) if f.endswith(".py") and f[0] != "_")
        raise InputError(f"There is no method {method.name!r}; configs/methods/ has {', '.join(names)}.")
    c = config_lib.load_file(f"{path}:{stem}")
    pretrained, evaluators = bool(c.num_steps), tuple(c.evaluate.evaluators)
    c = config_lib.override(c, overrides)
    c = config_lib.override(c, [f"--config.{change}" for change in filter(None, method.changes.split("/"))])
    with c.unlocked():
        if not pretrained:  # overrides of num_steps are for methods that pretrain
            c.num_steps = 0
        if _from_scratch(evaluators):  # overrides of evaluators are for networks that have features without labels
            c.evaluate.evaluators = evaluators
        c.method = method.spec
        # Other baselines are methods of the sweep; statistics of the pixels are measured once, with the untrained one.
        statistics = tuple(name for name in c.evaluate.baselines if not BASELINES[name].encodes)
        c.evaluate.baselines = statistics if method.name == "untrained" else ()
    return c


def _from_scratch(evaluators: Sequence[str]) -> bool:
    """Whether only networks trained from scratch are evaluated."""
    return all(EVALUATORS[name].from_scratch for name in evaluators)


def run_one(args: argparse.Namespace, run: Run, overrides: Sequence[str]) -> int:
    """Pretrains one method with one seed and measures its cells, as far as either is missing."""
    c = load(args.config, run.method, overrides)
    c.seed, c.dataset = run.seed, args.train_on or args.dataset
    if run.seed:  # without pretraining, the seeds of label subsets are the only ones
        c.evaluate.baselines = ()
        c.evaluate.evaluators = tuple(x for x in c.evaluate.evaluators if not EVALUATORS[x].from_scratch)
    member = members.member_workdir(args.workdir, run.method, run.seed)
    weights = members.member_workdir(args.weights or args.workdir, run.method, run.seed)
    status = pretrain.run(c, weights)
    if status:
        return status
    opened = evaluation.open_evaluation(weights, args.dataset, [], protocol=c, results=member)
    measure.measure(opened)
    with files.replacing(os.path.join(member, members.MEMBER_FILE)) as f:
        f.write(members.to_json(members.describe(opened)))
    return 0


def run_all(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """All methods and seeds, `jobs` at a time, each in a process of its own; then the tables."""
    methods = [parse_method(m) for m in args.methods.split(",") if m]
    configs = {m: load(args.config, m, overrides) for m in methods}
    prepared = sets.open_sets(args.dataset)
    for c in configs.values():  # before hours of pretraining
        settings.check(c, prepared)
    runs = _runs(configs, args.seeds)
    _check_comparable(args.workdir, prepared, configs, runs)
    os.makedirs(args.workdir, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _keep_settings(args, overrides, methods, runs)  # first, so that an interrupted sweep can be reported
    failed = _run_processes(args, overrides, runs)
    members.write_tables(args.workdir)
    print(summary(rows.read(os.path.join(args.workdir, rows.FILE_NAME))))
    print(f"Tables are in {args.workdir}. Next: fusionx report --workdir={args.workdir}")
    if failed:
        names = ", ".join(f"{r.method.spec} seed {r.seed}" for r in failed)
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {names}; run the same command again to resume.")
    return 0


def _runs(configs: Mapping[Method, ConfigDict], seeds: int) -> list[Run]:
    """The first seed of every method before the second of any; networks without pretraining have one."""
    several = {m for m, c in configs.items() if not _from_scratch(c.evaluate.evaluators)}
    return [Run(m, seed) for seed in range(seeds) for m in configs if not seed or m in several]


def _run_processes(args: argparse.Namespace, overrides: Sequence[str], runs: Sequence[Run]) -> list[Run]:
    """Runs each in a process of its own, `args.jobs` at a time; returns those that failed."""
    running: dict[int, tuple[subprocess.Popen[bytes], Run]] = {}
    failed, waiting = [], list(runs)
    with contextlib.ExitStack() as stack, progress.Progress(len(runs), "sweep", "run") as bar:
        while waiting or running:
            for slot in range(args.jobs):
                if slot not in running and waiting:
                    run = waiting.pop(0)
                    running[slot] = (_start(args, overrides, run, slot), run)
                    stack.callback(_stop, running[slot][0])
            for slot, (process, run) in list(running.items()):
                try:
                    status = process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
                del running[slot]
                bar.advance(1, f"{run.method.spec} seed {run.seed}")
                if status:
                    failed.append(run)
                    log = os.path.join(members.member_workdir(args.workdir, run.method, run.seed), "sweep.log")
                    progress.logger.error(
                        "%s, seed %d: failed with status %d; see %s.", run.method.spec, run.seed, status, log
                    )
    return failed


def _keep_settings(
    args: argparse.Namespace, overrides: Sequence[str], methods: Sequence[Method], runs: Sequence[Run]
) -> None:
    """Adds this command with its methods and seeds to the comparison's `sweep.json`."""
    before = _earlier(args.workdir)
    seeds = {m: before.methods.get(m, []) for m in [*before.methods, *methods]}
    seeds = {m: sorted({*kept, *(r.seed for r in runs if r.method == m)}) for m, kept in seeds.items()}
    elsewhere = [f"--{name}={value}" for name in _ELSEWHERE if (value := getattr(args, name))]
    command = [f"--config={args.config}", f"--methods={args.methods}", f"--seeds={args.seeds}", *elsewhere, *overrides]
    content = {
        "dataset": remote.absolute(args.dataset),
        "methods": {m.spec: s for m, s in seeds.items()},
        "commands": [*(c for c in before.commands if c != command), command],
    }
    with files.replacing(os.path.join(args.workdir, members.SWEEP_FILE)) as f:
        json.dump(content, f, indent=1)


def _check_comparable(
    workdir: str, prepared: sets.Readable, configs: Mapping[Method, ConfigDict], runs: Sequence[Run]
) -> None:
    """Refuses to add to a comparison runs whose protocol differs from that of the members that stay as they are."""
    protocols = {f"{m.spec} (now)": members.shared_protocol(c, prepared) for m, c in configs.items()}
    used = {
        f"{m.spec} (now)": (members.shared_evaluator_hashes(c), set(c.evaluate.evaluators)) for m, c in configs.items()
    }
    for method, seeds in _earlier(workdir).methods.items():
        for seed in seeds:
            about = members.read_about(workdir, method, seed) if Run(method, seed) not in runs else None
            if about is not None:
                name = f"{method.spec}, seed {seed}"
                protocols[name] = about.protocol
                used[name] = (about.evaluators, members.evaluators_used(about, workdir, method, seed))
    members.check_same_protocol(protocols)
    members.check_same_evaluators(used)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stops a run that is still running when the sweep ends early; it keeps its newest checkpoint and its cells."""
    if process.poll() is None:
        process.terminate()
        process.wait()


def _earlier(workdir: str) -> members.Sweep:
    """The record of earlier commands in the comparison's folder; empty if there is none."""
    return members.read_sweep(workdir) if members.is_comparison(workdir) else members.Sweep("", {}, [])


def _start(args: argparse.Namespace, overrides: Sequence[str], run: Run, slot: int) -> subprocess.Popen[bytes]:
    member = members.member_workdir(args.workdir, run.method, run.seed)
    os.makedirs(member, exist_ok=True)
    command = [
        sys.executable, "-m", "experiments.label_sweep", f"--config={args.config}", f"--methods={run.method.spec}",
        f"--workdir={args.workdir}", f"--dataset={args.dataset}", f"--only_seed={run.seed}",
        *(f"--{name}={value}" for name in _ELSEWHERE if (value := getattr(args, name))), *overrides,
    ]  # fmt: skip
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(cores) // args.jobs
    # Runs fit the same probes: the first one's compiled programs serve the others.
    environment = {"JAX_COMPILATION_CACHE_DIR": os.path.join(args.workdir, "compiled"), **os.environ}

    def keep_to_cores() -> (
        None
    ):  # two runs on one core each do more than one on two: small products share threads badly
        if args.jobs > 1 and share:
            os.sched_setaffinity(0, cores[slot * share : (slot + 1) * share])

    with open(os.path.join(member, "sweep.log"), "a", encoding="utf-8") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=keep_to_cores
        )
