"""A trained encoder as an object, for notebooks and other programs.

`fusionx_jax.load(path)` needs neither the run's config file nor its data set: a checkpoint says what network it is,
which bands it expects in which unit, and with which statistics it normalises. Input that does not fit is refused.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fusionx_jax import checkpoint, preprocess, tiles
from fusionx_jax import config as config_lib
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.contract import InputError, ModalityContract, check_own_unit
from fusionx_jax.evaluate import features
from fusionx_jax.models import build


class Encoded(NamedTuple):
    """What an encoder says of a batch of tiles.

    `pooled` [B, F] is the vector that the evaluation probes (mean and deviation of each sensor's tokens, side by side,
    unless the run's `evaluate.pooling` says otherwise); `summary` [B, D] the class token; `tokens` [B, h, w, D] by
    group, a map with one vector a patch.
    """

    pooled: Float[np.ndarray, "batch features"]
    summary: Float[np.ndarray, "batch dim"]
    tokens: dict[str, Float[np.ndarray, "batch rows columns dim"]]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained encoder with everything needed to run it."""

    saved: checkpoint.Saved
    config: Any
    model: Any
    params: Any

    @property
    def modalities(self) -> dict[str, ModalityContract]:
        """What each modality must be: bands, unit, processing level, and the statistics that normalise it."""
        return {m: self.saved.contract.modalities[m] for m in self.config.modalities}

    def encode(
        self,
        images: Mapping[str, np.ndarray],
        bands: Mapping[str, Sequence[str]] | None = None,
        batch_size: int = 64,
    ) -> Encoded:
        """Encodes co-registered tiles; modalities that are not given are left out of the token sequence.

        Args:
          images: by modality, physical values [B, H, W, C] in the unit of `modalities` (decibels, reflectance x 10^4),
            NaN where there is no data. Height and width are any, the same for all; they are padded to whole patches.
          bands: by modality, the names of its channels where they are not the checkpoint's own or in another order.
          batch_size: tiles encoded at once.

        Raises:
          InputError: an unknown modality, missing bands, shapes that do not fit, or values in another unit.
        """
        wire = self.to_wire(images, bands or {})
        some = next(iter(wire.values()))
        p = self.config.model.patch_size
        rows, columns = -(-some.shape[1] // p), -(-some.shape[2] // p)
        gaps = any((w == modalities_lib.NODATA).any() for w in wire.values())
        run = self.programs[gaps or bool(some.shape[1] % p or some.shape[2] % p)]
        parts = []
        for index, kept in tiles.equal_batches(len(some), batch_size):
            out = run(self.params, {m: w[index] for m, w in wire.items()})
            parts.append(jax.tree.map(lambda x, kept=kept: np.asarray(x)[:kept], out))
        whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return Encoded(
            whole["pooled"], whole["summary"],
            {m: t.reshape(len(some), rows, columns, -1) for m, t in whole["tokens"].items()},
        )  # fmt: skip

    def to_wire(self, images: Mapping[str, np.ndarray], bands: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Checked tiles, bands in the order of the weights, as the uint16 that training saw."""
        if not images:
            raise InputError(f"No images are given; this encoder knows {', '.join(self.modalities)}.")
        unknown = [m for m in [*images, *bands] if m not in self.modalities]
        if unknown:
            raise InputError(
                f"There is no modality {', '.join(unknown)} in {self.saved.path}; it has {', '.join(self.modalities)}."
            )
        out, shapes = {}, set()
        for name in (m for m in self.modalities if m in images):
            m, image = self.modalities[name], np.asarray(images[name])
            have = tuple(bands.get(name, m.bands))
            if image.ndim != 4 or image.shape[-1] != len(have) or 0 in image.shape:
                raise InputError(
                    f"images[{name!r}] has the shape {image.shape}; it must be [tiles, height, width, {len(have)}] "
                    f"with the bands {', '.join(have)} (a single tile x is x[None]; name other bands with `bands`)."
                )
            missing = [b for b in m.bands if b not in have]
            if missing:
                raise InputError(
                    f"images[{name!r}] lacks the band {', '.join(missing)}; the weights were trained on "
                    f"{', '.join(m.bands)}."
                )
            image = image[..., [have.index(b) for b in m.bands]].astype(np.float64)
            check_own_unit(image, name, m, f"images[{name!r}]")
            out[name] = modalities_lib.encode(image, m.scale, m.offset)
            shapes.add(image.shape[:3])
        if len(shapes) > 1:
            raise InputError(
                f"Modalities differ in tiles, height or width: {sorted(shapes)}; give co-registered tiles."
            )
        return out

    @functools.cached_property
    def programs(self) -> dict[bool, Any]:
        """Functions (params, wire) -> pooled, summary and tokens, compiled when called; True: pixels may lack data."""
        kept = {"model": self.model, "pooling": self.config.evaluate.pooling}
        return {m: jax.jit(functools.partial(outputs, normaliser=self.normaliser(m), **kept)) for m in (False, True)}

    def normaliser(self, masked: bool) -> preprocess.Normaliser:
        """Wire values to the weights' statistics; `masked`: pixels may lack data."""
        return dataclasses.replace(preprocess.make_normaliser(self.modalities, self.modalities), masked=masked)


def outputs(params, wire, *, model, normaliser, pooling) -> dict[str, Any]:
    """Pooled features, summary and tokens [B, N, D] of a batch of wire tiles; a pure function."""
    encoder = features.Encoder(model, params, normaliser)
    tokens = encoder.tokens(wire)
    return {
        "pooled": features.assemble(encoder.pools(tokens), pooling),
        "summary": tokens.summary.astype(jnp.float32),
        "tokens": {m: t.astype(jnp.float32) for m, t in tokens.groups.items()},
    }


def load(path: str) -> Loaded:
    """The encoder of a workdir's newest checkpoint, of one checkpoint, or of an export to Orbax.

    Raises:
      InputError: there is none, or its parameters are not those of the network it names.
    """
    saved = checkpoint.find(path)
    config = config_lib.from_json(saved.config)
    model = build.make_model(config, saved.contract.modalities)
    shapes = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    return Loaded(saved, config, model, checkpoint.load_params(saved, {"encoder": shapes["encoder"]}, part=True))
