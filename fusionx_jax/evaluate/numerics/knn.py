"""Weighted nearest neighbors on frozen features, without training.

As in "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv 1805.01978, section 3.4) and
DINO (arXiv 2104.14294, section 4.1): the k labeled tiles nearest in cosine similarity vote with weight exp(similarity /
temperature). Matrix products are float32 on every backend; the default on TPU would be bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_ROWS = 512  # test tiles at once


def scores(
    train: Float[np.ndarray, "train dim"],
    targets: Float[np.ndarray, "train classes"],
    subset: Int[np.ndarray, "labeled"],
    test: Float[np.ndarray, "test dim"],
    *,
    k: int,
    temperature: float,
) -> Float[np.ndarray, "test classes"]:
    """Log-odds of the vote for each class; `k` is cut to the number of labeled tiles."""
    k = min(k, len(subset))
    bank, labels = jnp.asarray(_unit(train[subset])), jnp.asarray(targets[subset], jnp.float32)
    parts = []
    for start in range(0, len(test), _ROWS):
        part = _unit(test[start : start + _ROWS])
        padded = np.pad(part, ((0, _ROWS - len(part)), (0, 0)))  # one shape, one program
        parts.append(np.asarray(_vote(bank, labels, padded, temperature, k=k))[: len(part)])
    share = np.clip(np.concatenate(parts), 1e-6, 1 - 1e-6)
    return np.log(share) - np.log1p(-share)


@functools.partial(jax.jit, static_argnames="k")
@jax.default_matmul_precision("float32")
def _vote(bank: Array, labels: Array, test: Array, temperature: Float[Array, ""], *, k: int) -> Array:
    similarity, nearest = jax.lax.top_k(test @ bank.T, k)
    weight = jax.nn.softmax(similarity / temperature, axis=1)
    return jnp.einsum("nk,nkc->nc", weight, labels[nearest])


def _unit(x: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
