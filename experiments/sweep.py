"""What `experiments.label_sweep` does: runs of (method, pretraining seed), each in a process of its own."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from fusionx_jax import config as config_lib
from fusionx_jax import files, pretrain, progress
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.evaluate import compare, measure
from fusionx_jax.evaluate import rows as rows_lib
from fusionx_jax.prepared import remote, sets

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETTINGS_FILE = compare.SETTINGS_FILE


def load(base: str, method: str, overrides: Sequence[str]) -> ConfigDict:
    """A method's config on a base, with the command line's changes and then the method's own, which its name tells.

    Raises:
      InputError: there is no such base or method, or a change does not fit.
    """
    name, *changes = method.split("/")
    stem = os.path.splitext(os.path.basename(base))[0]
    here = os.path.realpath(os.path.join(ROOT, "configs", f"{stem}.py"))
    if here not in (os.path.realpath(base), os.path.realpath(os.path.join(ROOT, base))):
        raise InputError(
            f"--config is {base}, but methods build on a file of configs/ by its name and without options; put yours "
            "there, or change values with --config.KEY=VALUE."
        )
    path = os.path.join(ROOT, "configs", "methods", f"{name}.py")
    if not os.path.isfile(path) or name == "__init__":
        known = sorted(f[:-3] for f in os.listdir(os.path.dirname(path)) if f.endswith(".py") and f[0] != "_")
        raise InputError(f"There is no method {name!r}; configs/methods/ has {', '.join(known)}.")
    c = config_lib.load_file(f"{path}:{stem}")
    never_trained, from_scratch = not c.num_steps, c.evaluate.evaluators == ("scratch",)
    c = config_lib.override(c, overrides)
    c = config_lib.override(c, [f"--config.{change}" for change in changes])
    with c.unlocked():
        if never_trained:  # the command line's number of steps is for those that are
            c.num_steps = 0
        if from_scratch:  # and its evaluators for networks that have features without labels
            c.evaluate.evaluators = ("scratch",)
        c.method = method
        # The baselines are methods of the sweep; band statistics need no network and go with the untrained one.
        c.evaluate.baselines = ("band_statistics",) if name == "untrained" else ()
    return c


def one(base: str, method: str, seed: int, workdir: str, dataset: str, overrides: Sequence[str]) -> int:
    """Pretrains one method with one seed and measures its cells, as far as either is missing."""
    c = load(base, method, overrides)
    c.seed, c.dataset = seed, dataset
    if seed:  # baselines without pretraining and networks without one have label subsets for seeds
        c.evaluate.baselines = ()
        c.evaluate.evaluators = tuple(x for x in c.evaluate.evaluators if x != "scratch")
    place = compare.place(workdir, method, seed)
    status = pretrain.run(c, place)
    if status:
        return status
    setting = measure.prepare_setting(place, dataset, [], judged_by=c)
    measure.measure(setting)
    with files.replacing(os.path.join(place, compare.MEMBER_FILE)) as f:
        json.dump({**compare.describe(setting), "cells": measure.cell_store(setting).directory}, f, indent=1)
    return 0


def run_all(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """All methods and seeds, `jobs` at a time, each in a process of its own; then the tables."""
    methods = [m for m in args.methods.split(",") if m]
    configs = {m: load(args.config, m, overrides) for m in methods}
    prepared = sets.open_sets(args.dataset)
    for c in configs.values():  # before hours of pretraining
        measure.check(c, prepared)
    # The first seed of every method before the second of any; networks without pretraining have one.
    wanted = [
        (m, s)
        for s in range(args.seeds)
        for m in methods
        if not s or set(configs[m].evaluate.evaluators) != {"scratch"}
    ]
    _check_comparable(args, prepared, configs, wanted)
    os.makedirs(args.workdir, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    running: dict[int, tuple[subprocess.Popen, str, int]] = {}
    failed, todo = [], list(wanted)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _keep_settings(args, overrides, methods, wanted)  # first, so that a sweep cut short can be reported
    with contextlib.ExitStack() as stack, progress.Progress(len(wanted), "sweep", "run") as bar:
        while todo or running:
            for slot in range(args.jobs):
                if slot not in running and todo:
                    method, seed = todo.pop(0)
                    running[slot] = (_start(args, overrides, method, seed, slot, cores), method, seed)
                    stack.callback(_stop, running[slot][0])
            for slot, (process, method, seed) in list(running.items()):
                try:
                    status = process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
                del running[slot]
                bar.advance(1, f"{method} seed {seed}")
                if status:
                    failed.append((method, seed))
                    log = os.path.join(compare.place(args.workdir, method, seed), "sweep.log")
                    progress.logger.error("%s, seed %d: failed with status %d; see %s.", method, seed, status, log)
    compare.write_tables(args.workdir)
    rows = rows_lib.read(os.path.join(args.workdir, rows_lib.FILE_NAME))
    print(measure.summary(rows))
    print(f"Tables are in {args.workdir}. Next: fusionx report --workdir={args.workdir}")
    if failed:
        names = ", ".join(f"{m} seed {s}" for m, s in failed)
        raise RunError(f"{len(failed)} of {len(wanted)} runs failed: {names}; run the same command again to go on.")
    return 0


def _keep_settings(args: argparse.Namespace, overrides: Sequence[str], methods: Sequence[str], wanted) -> None:
    """Adds this command and its methods and seeds to what the comparison's folder knows."""
    known = _known(args.workdir)
    members = {m: known["methods"].get(m, []) for m in [*known["methods"], *methods]}
    members = {m: sorted({*seeds, *(s for n, s in wanted if n == m)}) for m, seeds in members.items()}
    command = [f"--config={args.config}", f"--methods={args.methods}", f"--seeds={args.seeds}", *overrides]
    commands = [*(c for c in known["commands"] if c != command), command]
    with files.replacing(os.path.join(args.workdir, SETTINGS_FILE)) as f:
        json.dump({"dataset": remote.absolute(args.dataset), "methods": members, "commands": commands}, f, indent=1)


def _check_comparable(
    args: argparse.Namespace,
    prepared: sets.Readable,
    configs: dict[str, ConfigDict],
    wanted: list[tuple[str, int]],
) -> None:
    """Refuses to add to a comparison what would be judged in another way than the runs that stay as they are."""
    judged = {f"{m} (now)": compare.judged_by(c, prepared) for m, c in configs.items()}
    used = {f"{m} (now)": (compare.evaluator_words(c), set(c.evaluate.evaluators)) for m, c in configs.items()}
    for method, seeds in _known(args.workdir)["methods"].items():
        for seed in seeds:
            about = compare.read_member(args.workdir, method, seed) if (method, seed) not in wanted else None
            if about is not None:
                name = f"{method}, seed {seed}"
                judged[name] = about["judged_by"]
                used[name] = (about["evaluators"], compare.evaluators_used(about, args.workdir, method, seed))
    compare.check_alike(judged)
    compare.check_evaluators_alike(used)


def _stop(process: subprocess.Popen) -> None:
    """Ends a run that is still there when the sweep ends early; it keeps its newest checkpoint and its cells."""
    if process.poll() is None:
        process.terminate()
        process.wait()


def _known(workdir: str) -> dict[str, Any]:
    """What the folder knows of earlier commands; nothing where there was none."""
    if not os.path.exists(os.path.join(workdir, SETTINGS_FILE)):
        return {"methods": {}, "commands": []}
    return compare.read_settings(workdir)


def _start(args, overrides, method, seed, slot, cores) -> subprocess.Popen:
    place = compare.place(args.workdir, method, seed)
    os.makedirs(place, exist_ok=True)
    command = [
        sys.executable, "-m", "experiments.label_sweep", f"--config={args.config}", f"--methods={method}",
        f"--workdir={args.workdir}", f"--dataset={args.dataset}", f"--only_seed={seed}", *overrides,
    ]  # fmt: skip
    share = len(cores) // args.jobs
    # Runs fit the same probes: the first one's compiled programs serve the others.
    cache = {"JAX_COMPILATION_CACHE_DIR": os.path.join(args.workdir, "compiled"), **os.environ}

    def keep_to_cores():  # two runs on one core each do more than one on two: small products share threads badly
        if args.jobs > 1 and share:
            os.sched_setaffinity(0, cores[slot * share : (slot + 1) * share])

    with open(os.path.join(place, "sweep.log"), "a", encoding="utf-8") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=cache, stdout=log, stderr=subprocess.STDOUT, preexec_fn=keep_to_cores
        )
