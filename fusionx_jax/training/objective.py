"""The training objective: decode wire tiles, mask them, run the network, compute the loss.

Masked autoencoding (MAE, arXiv 2111.06377; Fus-MAE, arXiv 2401.02764) with an optional contrastive term (CROMA, arXiv
2311.00566). Pure functions of parameters, batch and key.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree, UInt16
from ml_collections import ConfigDict

from fusionx_jax import config as config_lib
from fusionx_jax import losses, masking, preprocess
from fusionx_jax.contract import Contract, acquisition
from fusionx_jax.errors import InputError
from fusionx_jax.models import build, layers
from fusionx_jax.models.network import Network

Wire = Mapping[str, UInt16[Array, "batch _height _width _channels"]]
"""Tiles as they are stored, by modality."""
Metrics = dict[str, Float[Array, ""]]


class Forward(NamedTuple):
    """A forward pass over a masked batch."""

    output: layers.Output
    masks: dict[str, masking.Mask]
    patches: dict[str, Float[Array, "batch _patches _pixels"]]  # standardized
    valid: dict[str, Bool[Array, "batch _patches _pixels"]] | None  # None: all pixels are valid


class Masked(NamedTuple):
    """A batch of standardized images with their masks, and which pixels are valid (None: all)."""

    images: dict[str, Float[Array, "batch _height _width _channels"]]
    masks: dict[str, masking.Mask]
    valid: dict[str, Bool[Array, "batch _height _width"]] | None


@dataclasses.dataclass(frozen=True)
class MaskedModel:
    """A network with its normalization and masking, fixed for a run (for one stage of a mask schedule)."""

    model: Network
    normalizer: preprocess.Normalizer
    mask: Callable[..., dict[str, masking.Mask]]  # a strategy of masking.py
    ratios: Mapping[str, float]
    views: Mapping[str, float] | None  # arguments of `preprocess.random_views`; None: one view for all modalities

    def forward(self, params: PyTree, wire: Wire, key: Key[Array, ""]) -> Forward:
        """Masks a batch of wire tiles and runs the network."""
        patch_size = self.model.config.patch_size
        images, masks, valid = self.masked(wire, key)
        output = self.model.apply({"params": params}, images, masks)
        patches = {m: layers.patchify(x, patch_size) for m, x in images.items()}
        if valid is not None:
            valid = {
                m: layers.patchify(jnp.broadcast_to(v[..., None], images[m].shape), patch_size)
                for m, v in valid.items()
            }
        return Forward(output, masks, patches, valid)

    def masked(self, wire: Wire, key: Key[Array, ""]) -> Masked:
        """Normalizes and masks a batch of wire tiles."""
        patch_size = self.model.config.patch_size
        images, valid = self.normalizer(preprocess.pad_to_multiple(wire, patch_size, self.normalizer.nodata))
        if self.views:
            view_key, key = jax.random.split(key)
            images, valid = preprocess.random_views(view_key, images, valid, **self.views)
        grids = {m: layers.grid(x, patch_size) for m, x in images.items()}
        visible = {m: masking.num_visible(grids[m][0] * grids[m][1], self.ratios[m]) for m in images}
        has_data = None if valid is None else preprocess.patch_has_data(valid, patch_size)
        batch_size = next(iter(images.values())).shape[0]
        return Masked(images, self.mask(key, batch_size, grids, visible, has_data), valid)


@dataclasses.dataclass(frozen=True)
class Objective(MaskedModel):
    """A masked network and the loss it is trained with."""

    weights: Mapping[str, float]
    contrast_weight: float
    view_weight: float
    temperature: float
    target: str
    crop: int
    flip: bool

    def loss(self, params: PyTree, wire: Wire, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The loss of a batch of wire tiles, and the metrics to log."""
        augment_key, mask_key = jax.random.split(key)
        stored = wire
        wire = preprocess.augment(augment_key, wire, self.crop, self.flip)
        other = {m: wire.get(acquisition(m, 1), x) for m, x in wire.items() if m in self.weights}
        wire = {m: wire[m] for m in other}
        output, masks, patches, valid = self.forward(params, wire, mask_key)
        total: Float[Array, ""] = jnp.zeros(())
        metrics: Metrics = {}
        if output.predicted:
            total, by_modality = losses.reconstruction(
                output.predicted, patches, masks, self.target, self.weights, valid
            )
            metrics |= {f"loss_{m}": v for m, v in by_modality.items()}
        if output.embedded:
            present = {n: m.visible_ok.any(1) for n, m in masks.items() if m.visible_ok is not None}
            contrast, matched = losses.info_nce(
                output.embedded, self.temperature, present, preprocess.same_tiles(stored)
            )
            total += self.contrast_weight * contrast
            metrics |= {"loss_contrast": contrast, "matched": matched}
        if self.view_weight:
            assert output.tokens is not None, "checked by make_objective"
            views, matched = self._contrast_views(params, output.tokens, other, mask_key, stored)
            total += self.view_weight * views
            metrics |= {"loss_views": views, "matched_views": matched}
        return total, {"loss": total, **metrics}

    def _contrast_views(
        self, params: PyTree, tokens: layers.Tokens, other: Wire, key: Key[Array, ""], stored: Wire
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """InfoNCE between the joint tokens of a masked tile and those of another mask of it, at its other date."""
        images, masks, _ = self.masked(other, jax.random.fold_in(key, 1))
        second = self.model.apply({"params": params}, images, masks, method="encode")
        projector = build.view_projector(self.model.config)
        embedded = {
            f"view{i}": jnp.asarray(projector.apply({"params": params["views"]}, layers.joint_average(t)))
            for i, t in enumerate((tokens, second))
        }
        return losses.info_nce(embedded, self.temperature, None, preprocess.same_tiles(stored))


def make_objective(config: ConfigDict, model: Network, normalizer: preprocess.Normalizer, step: int = 0) -> Objective:
    """The objective at `step`: a mask schedule changes it during a run.

    Raises:
      InputError: masking, ratios or weights do not fit the modalities.
    """
    missing = [m for m in config.modalities if m not in config.loss_weights]
    if missing:
        raise InputError(
            f"loss_weights has no entry for {', '.join(missing)}; set one for every modality, e.g. "
            f"--config.loss_weights.{missing[0]}=1."
        )
    contrast, views = config.get("contrast"), config.augment.get("views")
    if build.contrasts_views(config) and not model.traits.reconstructs:
        raise InputError(
            f"contrast.views is {contrast.views:g}, but model.family {config.model.family!r} has no masked pass whose "
            "tokens could be contrasted; set it to 0."
        )
    return Objective(
        model=model,
        normalizer=normalizer,
        mask=masking.strategy(config.masking, config.masking_options.to_dict()),
        ratios=config_lib.mask_ratios(config, step),
        views=dict(views) if views and views["least_area"] < 1 else None,
        weights={m: float(config.loss_weights[m]) for m in config.modalities},
        contrast_weight=float(contrast.weight) if contrast else 1.0,
        view_weight=float(contrast.get("views", 0.0)) if contrast else 0.0,
        temperature=float(contrast.temperature) if contrast else 1.0,
        target=config.target,
        crop=config.augment.crop,
        flip=config.augment.flip,
    )


def first_objective(config: ConfigDict, model: Network, contract: Contract) -> Objective:
    """The objective at step 0, on data normalized by the statistics of `contract`."""
    modalities = {m: contract.modalities[m] for m in config.modalities}
    normalizer = preprocess.make_normalizer(
        modalities, modalities, side=config.augment.crop, patch_size=config.model.patch_size
    )
    return make_objective(config, model, normalizer)
