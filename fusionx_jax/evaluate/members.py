"""The members of a comparison: finished pretrainings in one folder, checked to be comparable.

A comparison is a folder with `sweep.json` (data set, methods with their seeds, commands) and one workdir for each
pretraining, whose `sweep_member.json` states where its cells are and how they were measured.
"""

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from fusionx_jax import files
from fusionx_jax.encoder import Encoder, assemble
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import compare, features, hashes, rows
from fusionx_jax.evaluate.cells import Cells, Store
from fusionx_jax.evaluate.evaluation import Evaluation
from fusionx_jax.evaluate.records import Group, Method, parse_method
from fusionx_jax.evaluate.rows import Context, Pretraining
from fusionx_jax.evaluate.sources import baseline_context, context
from fusionx_jax.models import build
from fusionx_jax.prepared import sets
from fusionx_jax.training.flops import flops_per_pair
from fusionx_jax.types import Json, JsonObject, Untyped

SWEEP_FILE = "sweep.json"
MEMBER_FILE = "sweep_member.json"


class Sweep(NamedTuple):
    """What `sweep.json` holds: the data set, the pretraining seeds of each method, the commands that were typed."""

    dataset: str
    methods: dict[Method, list[int]]
    commands: list[list[str]]


class About(NamedTuple):
    """What a finished pretraining states beside its cells: `sweep_member.json`.

    protocol: settings that all members must share, see `shared_protocol`. evaluators: by evaluator, the hash of its
    settings as far as members must share them. cell_settings: by evaluator, the hash under which its cells are kept.
    weights: workdir of the pretraining, relative to the member's folder; "" where they are the same.
    features: number of features that a probe reads, of all modalities together; 0 without frozen features.
    """

    seed: int
    protocol: JsonObject
    evaluators: dict[str, str]
    cell_settings: dict[str, str]
    cells: str
    context: Context
    parameters: int
    encoder_parameters: int
    flops_per_pair: float
    pairs_per_s: float | None
    num_steps: int
    batch_size: int
    learning_rate: float
    weights: str = ""
    features: int = 0


class Member(NamedTuple):
    """One finished pretraining with its cells."""

    about: About
    cells: dict[Group, Cells]


class Cost(NamedTuple):
    """Size and speed of a method's pretraining: one row of methods.csv. FLOPs and rate are NaN without pretraining."""

    method: str
    changes: str
    num_pretrainings: int
    parameters: int
    encoder_parameters: int
    flops_per_pair: float
    num_steps: int
    batch_size: int
    learning_rate: float
    pairs_per_s: float
    features: int = 0


def member_workdir(workdir: str, method: Method, seed: int) -> str:
    """The workdir of one pretraining inside a comparison."""
    return files.join(workdir, method.spec.replace("/", "+"), f"seed{seed}")


def weights_workdir(workdir: str, method: Method, about: About) -> str:
    """The workdir of a member's weights."""
    member = member_workdir(workdir, method, about.seed)
    return os.path.normpath(os.path.join(member, about.weights)) if about.weights else member


def shared_protocol(config: ConfigDict, prepared: sets.Readable) -> JsonObject:
    """The settings that all members of a comparison must share: data, label fractions, how scores are measured.

    Pooling and batch size are a method's own.
    """
    shared = hashes.shared_settings(config)
    return {
        "data": features.contract_hash(prepared),
        "label_fractions": list(config.label_fractions),
        **{k: v for k, v in shared.items() if k not in ("pooling", "batch_size")},
    }


def shared_evaluator_hashes(config: ConfigDict) -> dict[str, str]:
    """By evaluator, the hash of its settings as far as members must share them: learning rates are tuned by method."""
    return hashes.evaluator_hashes(config, leave_out=("learning_rates",))


def describe(evaluation: Evaluation) -> About:
    """What a comparison keeps of one pretraining beside its cells."""
    config = evaluation.config
    shapes = jax.eval_shape(lambda: build.init_params(evaluation.model, jax.random.key(0)))
    same = evaluation.pretraining == evaluation.workdir
    return About(
        seed=config.seed,
        # Groups of bands belong to the network: the data set is hashed without them.
        protocol=shared_protocol(config, sets.open_sets(evaluation.prepared.directory)),
        evaluators=shared_evaluator_hashes(config),
        cell_settings=hashes.evaluator_hashes(config),
        cells=os.path.basename(evaluation.cell_store().directory),
        context=context(evaluation, evaluation.method),
        parameters=_count(shapes),
        encoder_parameters=_count(shapes.get("encoder", {})),
        flops_per_pair=flops_per_pair(config, evaluation.model, evaluation.saved.contract),
        pairs_per_s=_median_speed(evaluation.pretraining),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        learning_rate=config.optimizer.learning_rate,
        weights="" if same else os.path.relpath(evaluation.pretraining, evaluation.workdir),
        features=_num_features(evaluation),
    )


def _num_features(evaluation: Evaluation) -> int:
    """The length of the vector that a probe reads."""
    model, config = evaluation.model, evaluation.config
    images = {
        name: jax.ShapeDtypeStruct((1, m.height, m.width, len(m.bands)), "uint16")
        for name, m in evaluation.prepared.contract.modalities.items()
        if name in config.modalities
    }
    params = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    if "encoder" not in params:
        return 0

    def read(params: PyTree, wire: Mapping[str, jax.Array]) -> jax.Array:
        pools = Encoder(model, params, evaluation.normalizer).pooled(wire)
        return jnp.asarray(assemble(pools, config.evaluate.pooling))

    return int(jax.eval_shape(read, {"encoder": params["encoder"]}, images).shape[1])


def _count(shapes: PyTree) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


def _median_speed(workdir: str) -> float | None:
    """Median pairs per second of a pretraining; None where it took no step."""
    path = files.join(workdir, "metrics.csv")
    if not files.exists(path):
        return None
    table = csv.DictReader(io.StringIO(files.read_text(path), newline=""))
    rates = [float(r["pairs_per_s"]) for r in table]
    finite = [r for r in rates if np.isfinite(r)]
    return float(np.median(finite)) if finite else None


def to_json(about: About) -> str:
    """The content of `sweep_member.json`."""
    return json.dumps({**about._asdict(), "context": about.context._asdict()}, indent=1)


def is_comparison(workdir: str) -> bool:
    return files.exists(files.join(workdir, SWEEP_FILE))


def read_sweep(workdir: str) -> Sweep:
    """The content of a comparison's `sweep.json`.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = files.join(workdir, SWEEP_FILE)
    try:
        raw = json.loads(files.read_text(path))
        methods = {parse_method(spec): [int(s) for s in seeds] for spec, seeds in raw["methods"].items()}
        return Sweep(raw["dataset"], methods, raw.get("commands", []))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); give the workdir of "
            "`python -m experiments.label_sweep`."
        ) from error


def read_about(workdir: str, method: Method, seed: int) -> About | None:
    """What a finished pretraining states of itself; None where it is not finished.

    Raises:
      InputError: the file is damaged, or of another version.
    """
    path = files.join(member_workdir(workdir, method, seed), MEMBER_FILE)
    if not files.exists(path):
        return None
    try:
        raw = json.loads(files.read_text(path))
        unscored = {task: tuple(names) for task, names in raw["context"]["unscored"].items()}
        return About(**{**raw, "context": Context(**{**raw["context"], "unscored": unscored})})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not describe a member of this version ({type(error).__name__}: {error}); remove it and run "
            "the same sweep again."
        ) from error


def read_members(workdir: str) -> dict[Method, list[Member]]:
    """Every finished pretraining, by method.

    Raises:
      InputError: two of them were evaluated on other data or with other settings, so their difference means nothing.
    """
    out: dict[Method, list[Member]] = {}
    for method, seeds in read_sweep(workdir).methods.items():
        for seed in seeds:
            about = read_about(workdir, method, seed)
            if about is None:
                continue
            directory = member_workdir(workdir, method, seed)
            # Tables are copied elsewhere: a path relative to the comparison is shorter, and still names the weights.
            about = about._replace(context=about.context._replace(checkpoint=_relative(directory, workdir)))
            out.setdefault(method, []).append(Member(about, _cells(about, directory)))
    everyone = {m.about.context.checkpoint: m for pretrainings in out.values() for m in pretrainings}
    check_same_protocol({name: m.about.protocol for name, m in everyone.items()})
    check_same_evaluators({n: (m.about.evaluators, {g.evaluator for g in m.cells}) for n, m in everyone.items()})
    return out


def _relative(directory: str, workdir: str) -> str:
    return directory.removeprefix(workdir).lstrip("/")


def _cells(about: About, workdir: str) -> dict[Group, Cells]:
    return dict(Store(files.join(workdir, "cells", about.cells), about.cell_settings).read_all())


def evaluators_used(about: About, workdir: str, method: Method, seed: int) -> set[str]:
    """The evaluators that a finished pretraining has cells of."""
    return {group.evaluator for group in _cells(about, member_workdir(workdir, method, seed))}


def check_same_protocol(protocols: Mapping[str, Mapping[str, Json]]) -> None:
    """Refuses runs (by name) whose protocol differs from that of the first.

    Raises:
      InputError: with both names, the setting and its two values.
    """
    first = next(iter(protocols), None)
    for name, other in protocols.items():
        for key, value in protocols[first or name].items():
            if value != other.get(key):
                raise InputError(
                    f"{first} and {name} are evaluated differently ({key}: {value!r} and {other.get(key)!r}), so they "
                    "cannot be compared; evaluate all with the same settings, or give a --workdir of its own to each."
                )


def check_same_evaluators(used: Mapping[str, tuple[Mapping[str, str], Collection[str]]]) -> None:
    """Refuses runs (by name: hashes by evaluator, evaluators used) that used an evaluator with different settings."""
    for evaluator in sorted({e for by_evaluator, _ in used.values() for e in by_evaluator}):
        users = {name: by_evaluator for name, (by_evaluator, names) in used.items() if evaluator in names}
        check_same_protocol({name: {evaluator: hashes[evaluator]} for name, hashes in users.items()})


def measured(members: Mapping[Method, Sequence[Member]]) -> dict[Group, list[Pretraining]]:
    """Every group of cells with those of all its pretrainings, in the order of methods."""
    out: dict[Group, list[Pretraining]] = {}
    for pretrainings in members.values():
        for about, groups in pretrainings:
            for group, cells in groups.items():
                context = baseline_context(about.context, group.method)
                out.setdefault(group, []).append(Pretraining(about.seed, context, cells))
    return out


def cost(members: Mapping[Method, Sequence[Member]]) -> Iterator[Cost]:
    """Parameters, FLOPs and speed of every method's pretraining; the speed is a mean over its seeds."""
    for method, pretrainings in members.items():
        first = pretrainings[0].about
        rates = [m.about.pairs_per_s for m in pretrainings if m.about.pairs_per_s]
        trained = bool(first.num_steps)
        yield Cost(
            method=method.name,
            changes=method.changes,
            num_pretrainings=len(pretrainings),
            parameters=first.parameters,
            encoder_parameters=first.encoder_parameters,
            flops_per_pair=first.flops_per_pair if trained else float("nan"),
            num_steps=first.num_steps,
            batch_size=first.batch_size,
            learning_rate=first.learning_rate if trained else float("nan"),
            pairs_per_s=float(np.mean(rates)) if rates else float("nan"),
            features=first.features,
        )


def write_tables(workdir: str) -> dict[Method, list[Member]]:
    """results.csv, differences.csv, ablations.csv, fusion_gains.csv, labels_needed.csv and methods.csv of a comparison.

    Returns its members.
    """
    members = read_members(workdir)
    groups = measured(members)
    found = [row for group, pretrainings in groups.items() for row in rows.from_cells(group, pretrainings)]
    rows.write(files.join(workdir, rows.FILE_NAME), found)
    tables: tuple[tuple[str, tuple[str, ...], Iterable[Untyped]], ...] = (
        ("differences.csv", compare.Difference._fields, compare.differences(groups)),
        ("ablations.csv", compare.Ablation._fields, compare.ablations(groups)),
        ("fusion_gains.csv", compare.FusionGain._fields, compare.fusion_gains(groups)),
        ("labels_needed.csv", compare.LabelsNeeded._fields, compare.labels_needed(groups)),
        ("methods.csv", Cost._fields, cost(members)),
    )
    for name, columns, table in tables:
        rows.write_table(files.join(workdir, name), columns, (line._asdict() for line in table))
    return members
