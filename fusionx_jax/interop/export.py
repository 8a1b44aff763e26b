"""`fusionx export`: an encoder as an Orbax checkpoint, a safetensors file or a StableHLO program.

Every export is read back and run on tiles of a prepared set beside the encoder it was made from; above the tolerance
nothing is kept. Configuration and data contract travel inside.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from fusionx_jax import checkpoint, files, progress, readback
from fusionx_jax import config as config_lib
from fusionx_jax import encoder as encoder_lib
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.contract import check_compatible
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.interop import WEIGHTS_FILE
from fusionx_jax.models import build
from fusionx_jax.prepared import order, sets
from fusionx_jax.types import JsonObject, Untyped

REPORT = "parity.json"
PROGRAM = "encoder.stablehlo"
DESCRIPTION = "description.json"
PLATFORMS = ("cpu", "cuda", "tpu")

Images = Mapping[str, np.ndarray]
Encode = Callable[[Images], Untyped]  # returns an object with pooled, summary and tokens


def describe(loaded: encoder_lib.TrainedEncoder) -> JsonObject:
    """Metadata of exported weights: configuration, contract, step, and the network as plain numbers.

    The paths of the machine are left out: an export is for other machines.
    """
    config = config_lib.to_json(loaded.config)
    config |= {"dataset": "", "init_from": "", "evaluate": {**config["evaluate"], "subset_dir": ""}}
    return {
        "config": config,
        "contract": loaded.saved.contract.to_dict(),
        "step": loaded.saved.step,
        "family": loaded.config.model.family,
        "architecture": dataclasses.asdict(loaded.model.config),
    }


def to_orbax(loaded: encoder_lib.TrainedEncoder, params: PyTree, folder: str, images: Images) -> Encode:
    """A checkpoint without optimizer for `fusionx_jax.load` (with the decoder for `init_from` too), on any devices."""
    about = describe(loaded)
    metadata = {k: about[k] for k in ("config", "contract", "step")}
    ocp.save_checkpointables(os.path.abspath(folder), {"state": {"params": params}}, custom_metadata=metadata)
    readback.confirm(os.path.abspath(folder))
    return encoder_lib.load(folder).encode


def to_safetensors(loaded: encoder_lib.TrainedEncoder, params: PyTree, folder: str, images: Images) -> Encode | None:
    """Parameters by their path; the PyTorch twin reads them. None where the twin cannot run here."""
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise InputError("safetensors is not installed; install it with `pip install safetensors`.") from error
    os.makedirs(folder)
    flat = {
        "/".join(k.key for k in path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    save_file(flat, os.path.join(folder, WEIGHTS_FILE), metadata={"fusionx": json.dumps(describe(loaded))})
    if loaded.config.model.family != "fusionx":
        progress.logger.warning("The PyTorch twin knows FusionX-Net alone: the outputs of this file are not compared.")
        return None
    try:
        from fusionx_jax.interop import twin
    except ImportError:
        progress.logger.warning("PyTorch is not installed (pip install fusionx-jax[torch]): nothing was compared.")
        return None
    return twin.load(folder).encode


def to_stablehlo(loaded: encoder_lib.TrainedEncoder, params: PyTree, folder: str, images: Images) -> Encode:
    """One program with its weights: physical values of any number of tiles [b, H, W, C] in, features out.

    Height and width are those of `images`.
    """
    os.makedirs(folder)
    modalities = loaded.modalities
    normalizer = loaded.normalizer(masked=True)
    run = functools.partial(
        encoder_lib.outputs,
        params, model=loaded.model, normalizer=normalizer, pooling=loaded.config.evaluate.pooling,
    )  # fmt: skip

    def encode(images: Mapping[str, jax.Array]) -> JsonObject:
        wire = {}
        for name, x in images.items():
            m = modalities[name]
            steps = jnp.clip(jnp.round((x - m.offset) / m.scale), 0, modalities_lib.NODATA - 1)
            wire[name] = jnp.where(jnp.isfinite(x), steps, modalities_lib.NODATA).astype(jnp.uint16)
        return run(wire)

    (b,) = jax.export.symbolic_shape("b")
    shapes = {n: jax.ShapeDtypeStruct((b, *x.shape[1:]), jnp.float32) for n, x in images.items()}
    program = jax.export.export(jax.jit(encode), platforms=PLATFORMS)(shapes)
    path = pathlib.Path(folder)
    (path / PROGRAM).write_bytes(program.serialize())
    (path / DESCRIPTION).write_text(json.dumps(describe(loaded), indent=1), encoding="utf-8")
    back = jax.export.deserialize(bytearray((path / PROGRAM).read_bytes()))

    def again(images: Images) -> encoder_lib.Encoded:
        out = back.call({n: jnp.asarray(x, jnp.float32) for n, x in images.items()})
        rows = -(-next(iter(images.values())).shape[1] // loaded.config.model.patch_size)
        tokens = {n: np.asarray(t).reshape(len(t), rows, -1, t.shape[-1]) for n, t in out["tokens"].items()}
        return encoder_lib.Encoded(np.asarray(out["pooled"]), np.asarray(out["summary"]), tokens)

    return again


FORMATS = {"orbax": to_orbax, "safetensors": to_safetensors, "stablehlo": to_stablehlo}


def compare(reference: encoder_lib.Encoded, other: Untyped) -> dict[str, float]:
    """The largest difference of each output, as a share of the reference's largest value."""
    pairs = {"pooled": (reference.pooled, other.pooled), "summary": (reference.summary, other.summary)}
    pairs |= {f"tokens {m}": (t, other.tokens[m]) for m, t in reference.tokens.items()}
    return {
        k: float(np.abs(np.asarray(b).reshape(a.shape) - a).max() / max(np.abs(a).max(), 1e-12))
        for k, (a, b) in pairs.items()
    }


def export(
    path: str, to: str, out: str, dataset: str = "", with_decoder: bool = False, tolerance: float = 1e-4,
    num_tiles: int = 32,
) -> JsonObject:  # fmt: skip
    """Exports the encoder of a checkpoint to the folder `out` and returns the report of its parity.

    Raises:
      InputError: `out` exists, there is no checkpoint, or no prepared set to compare on.
      RunError: the export gives other outputs; nothing is kept under `out`.
    """
    if os.path.exists(out):
        raise InputError(f"{out} exists already; give another --out, or remove it.")
    if to == "orbax":
        checkpoint.check_address(out)
    loaded = encoder_lib.load(path)
    if with_decoder and to == "stablehlo":
        raise InputError("--with_decoder is for weights (orbax, safetensors); the program encodes only.")
    images, where = _tiles(loaded, dataset, num_tiles)
    params = loaded.params
    if with_decoder:
        params = checkpoint.load_params(
            loaded.saved, jax.eval_shape(lambda: build.init_params(loaded.model, jax.random.key(0)))
        )
    staging = f"{out.rstrip('/')}.tmp-{os.getpid()}"
    try:
        again = FORMATS[to](loaded, params, staging, images)
        differences = compare(loaded.encode(images), again(images)) if again else {}
        report = {
            "format": to, "step": loaded.saved.step, "with_decoder": with_decoder,
            "tiles": len(next(iter(images.values()))), "of": where, "tolerance": tolerance,
            "largest_relative_difference": differences, "compared": bool(differences),
        }  # fmt: skip
        if not all(d <= tolerance for d in differences.values()):  # a NaN fails too
            raise RunError(
                f"The exported encoder gives other outputs than {loaded.saved.path}: {differences}, above the "
                f"tolerance {tolerance:g}; nothing was written to {out}."
            )
        with files.replacing(os.path.join(staging, REPORT)) as f:
            json.dump(report, f, indent=1)
        os.rename(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _tiles(loaded: encoder_lib.TrainedEncoder, dataset: str, count: int) -> tuple[dict[str, np.ndarray], str]:
    """Physical values of some test tiles of a prepared set, and the name of the set."""
    dataset = dataset or loaded.config.dataset
    try:
        prepared = sets.open_sets(dataset, (), dict(loaded.config.get("band_groups", {})))
    except InputError as error:
        raise InputError(f"Parity is checked on tiles of a prepared set; give one with --dataset. ({error})") from error
    check_compatible(prepared.contract, loaded.modalities, have_name=dataset, want_name=loaded.saved.path)
    split = next(s for s in ("test", "val", "train") if prepared.contract.splits.get(s))
    names = [m for m in loaded.modalities if m in prepared.contract.modalities]
    wire = prepared.read(split, order.spread(prepared.size(split), count), names)
    out = {}
    for name in names:
        have, want = prepared.contract.modalities[name], loaded.modalities[name]
        values = modalities_lib.decode(wire[name], have.scale, have.offset)
        out[name] = values[..., [have.bands.index(b) for b in want.bands]]
    return out, f"{prepared.contract.title}, {split}"
