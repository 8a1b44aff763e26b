"""Losses: mean squared error on hidden patches, pixels without data left out; InfoNCE between sensors.

Targets (MAE, arXiv 2111.06377, section 4; DESIGN: never pooled across modalities): "normalized" removes each patch's
own mean and deviation per modality, "raw" keeps the standardized values (their level carries meaning in remote
sensing), "both" predicts the two with two heads.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusionx_jax.masking import Mask

_EPSILON = 1e-6
_NEVER = -1e9  # the score of excluded candidates; finite, so that gradients are


def patch_moments(
    patches: Float[Array, "batch patches pixels"], valid: Bool[Array, "batch patches pixels"] | None
) -> tuple[Float[Array, "batch patches 1"], Float[Array, "batch patches 1"]]:
    """Mean and deviation of each patch over its valid pixels."""
    if valid is None:
        mean = patches.mean(-1, keepdims=True)
        variance = patches.var(-1, keepdims=True)
    else:
        count = jnp.maximum(valid.sum(-1, keepdims=True), 1)
        mean = jnp.where(valid, patches, 0).sum(-1, keepdims=True) / count
        variance = jnp.where(valid, (patches - mean) ** 2, 0).sum(-1, keepdims=True) / count
    return mean, jnp.sqrt(variance + _EPSILON)


def targets(
    patches: Float[Array, "batch patches pixels"],
    kind: str,
    valid: Bool[Array, "batch patches pixels"] | None = None,
) -> Float[Array, "batch patches outputs"]:
    """What the decoder should predict for each patch of standardized pixels."""
    if kind == "raw":
        return patches
    mean, deviation = patch_moments(patches, valid)
    normalized = (patches - mean) / deviation
    return normalized if kind == "normalized" else jnp.concatenate([normalized, patches], axis=-1)


def reconstruction(
    predicted: Mapping[str, Float[Array, "batch _hidden _outputs"]],
    patches: Mapping[str, Float[Array, "batch _patches _pixels"]],
    masks: Mapping[str, Mask],
    kind: str,
    weights: Mapping[str, float],
    valid: Mapping[str, Bool[Array, "batch _patches _pixels"]] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum of per-modality losses, and those losses by modality.

    `predicted` are the hidden patches alone, as `layers.Output` has them. A modality's loss is the mean over hidden,
    valid pixels of the whole batch; with target "both", of both parts.
    """
    losses: dict[str, Array] = {}
    for name in sorted(predicted):
        index = masks[name].hidden[..., None]
        ok = None if valid is None else jnp.take_along_axis(valid[name], index, axis=1)
        aim = targets(jnp.take_along_axis(patches[name], index, axis=1), kind, ok)
        error = (predicted[name] - aim) ** 2
        hidden_ok = masks[name].hidden_ok
        if hidden_ok is not None:
            counted = jnp.broadcast_to(hidden_ok[..., None], (*index.shape[:2], patches[name].shape[-1]))
            ok = counted if ok is None else ok & counted
        if ok is None:
            losses[name] = error.mean()
        else:
            ok = jnp.concatenate([ok, ok], axis=-1) if kind == "both" else ok
            losses[name] = jnp.where(ok, error, 0).sum() / jnp.maximum(ok.sum(), 1)
    total = sum((weights[name] * loss for name, loss in losses.items()), start=jnp.zeros(()))
    return total, losses


def info_nce(
    embedded: Mapping[str, Float[Array, "batch dim"]],
    temperature: float,
    present: Mapping[str, Bool[Array, "batch"]] | None = None,
    same: Bool[Array, "batch batch"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Symmetric InfoNCE between every two modalities of the same tiles, the rest of the batch being negatives.

    CROMA (arXiv 2311.00566, section 3) and CLIP (arXiv 2103.00020): embeddings of unit length, scaled dot products,
    cross-entropy both ways; a mean over pairs of modalities. A tile without a visible patch of a modality (`present`)
    is neither a pair nor a negative for it, and a tile that the batch holds several times (`same`) is no negative of
    itself. Also returns how often a tile's nearest neighbor in the other modality is
    itself.
    """
    # Not the norm itself: an example without a visible token is embedded as zero, where its gradient is not a number.
    unit = {n: e * jax.lax.rsqrt((e**2).sum(-1, keepdims=True) + 1e-12) for n, e in embedded.items()}
    names, losses, hits = sorted(unit), [], []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            logits = unit[a] @ unit[b].T / temperature
            every = jnp.ones(len(logits), bool)
            shown = {n: (present or {}).get(n, every) for n in (a, b)}
            pairs = shown[a] & shown[b]
            count = jnp.maximum(pairs.sum(), 1)
            for scores, candidates in ((logits, shown[b]), (logits.T, shown[a])):
                scores = jnp.where(candidates, scores, _NEVER)
                if same is not None:
                    scores = jnp.where(same & ~jnp.eye(len(scores), dtype=bool), _NEVER, scores)
                losses.append(jnp.where(pairs, -jnp.diagonal(jax.nn.log_softmax(scores)), 0).sum() / count)
                hits.append((pairs & (scores.argmax(1) == jnp.arange(len(scores)))).sum() / count)
    return jnp.stack(losses).mean(), jnp.stack(hits).mean()


def undo_normalization(
    predicted: Float[Array, "batch patches outputs"],
    patches: Float[Array, "batch patches pixels"],
    kind: str,
    valid: Bool[Array, "batch patches pixels"] | None = None,
) -> Float[Array, "batch patches pixels"]:
    """Predicted pixels in standardized units, for drawing.

    A normalized prediction lacks the patch's level, which is taken from the true patch (as MAE's figures do); with
    target "both" the raw part is used, which does not use the true patch.
    """
    if kind == "raw":
        return predicted
    if kind == "both":
        return predicted[..., predicted.shape[-1] // 2 :]
    mean, deviation = patch_moments(patches, valid)
    return predicted * deviation + mean
