import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionx_jax.models import layers
from fusionx_jax.models.positions import sincos_positions


def test_patchify_and_back_is_the_identity_and_patches_are_row_major():
    image = jnp.arange(2 * 8 * 12 * 3, dtype=jnp.float32).reshape(2, 8, 12, 3)
    patches = layers.patchify(image, 4)
    assert patches.shape == (2, 6, 48)
    assert (patches[0, 4].reshape(4, 4, 3) == image[0, 4:8, 4:8]).all()
    assert (layers.unpatchify(patches, 4, 8, 12) == image).all()


def test_positions_are_distinct_and_near_ones_are_similar():
    codes = sincos_positions(4, 6, 32)
    similarity = codes @ codes.T
    assert codes.shape == (24, 32)
    assert (similarity.argmax(1) == np.arange(24)).all()
    assert similarity[0, 1] > similarity[0, 5]
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(2, 2, 30)


def _numpy_attention(x, context, wq, wk, wv, wo, heads, ok=None):
    q, k, v = x @ wq, context @ wk, context @ wv
    out = np.zeros_like(q)
    d = q.shape[-1] // heads
    for b in range(len(x)):
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            scores = q[b, :, part] @ k[b, :, part].T / np.sqrt(d)
            if ok is not None:
                scores = np.where(ok[b], scores, -np.inf)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, part] = weight / weight.sum(-1, keepdims=True) @ v[b, :, part]
    return out @ wo


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_plain_numpy(masked):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 16)).astype(np.float32)
    context = rng.normal(size=(2, 7, 16)).astype(np.float32)
    ok = rng.random((2, 7)) < 0.6 if masked else None
    module = layers.CrossAttention(heads=4)
    given = [None if a is None else jnp.asarray(a) for a in (x, context, ok)]
    params = module.init(jax.random.key(0), *given[:2])["params"]
    wk, wv = np.split(np.asarray(params["kv"]["kernel"]), 2, axis=1)
    expected = _numpy_attention(x, context, params["q"]["kernel"], wk, wv, params["out"]["kernel"], 4, ok)
    assert np.allclose(module.apply({"params": params}, *given), expected, atol=1e-5)

    attention = layers.SelfAttention(heads=4)
    params = attention.init(jax.random.key(1), given[1])["params"]
    wq, wk, wv = np.split(np.asarray(params["qkv"]["kernel"]), 3, axis=1)
    expected = _numpy_attention(context, context, wq, wk, wv, params["out"]["kernel"], 4, ok)
    assert np.allclose(attention.apply({"params": params}, *given[1:]), expected, atol=1e-5)


def test_a_query_whose_context_is_empty_receives_nothing():
    x = jnp.ones((2, 3, 8))
    module = layers.CrossAttention(heads=2)
    params = module.init(jax.random.key(0), x, x)
    ok = jnp.array([[True, False, False], [False, False, False]])
    out = module.apply(params, x, x, ok)
    assert (out[1] == 0).all()
    assert (out[0] != 0).any()


def test_scanned_blocks_equal_their_unrolled_twin():
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    stack = layers.Blocks(depth=3, heads=2, mlp_ratio=2.0)
    params = stack.init(jax.random.key(1), x)["params"]["scan"]
    block = layers.Block(heads=2, mlp_ratio=2.0)
    expected = x
    for i in range(3):
        expected, _ = block.apply({"params": jax.tree.map(lambda p, i=i: p[i], params)}, expected)
    assert np.allclose(stack.apply({"params": {"scan": params}}, x), expected, atol=1e-5)


def test_half_precision_products_have_float32_gradients():
    """Summed over rows (and devices) in float32: a gradient rounded to bfloat16 would be off by up to 0.4 %."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(200, 6)), jnp.bfloat16)
    dense = layers.Dense(5, jnp.bfloat16)
    params = dense.init(jax.random.key(0), x)["params"]
    pull = jnp.asarray(rng.normal(size=(200, 5)), jnp.bfloat16)

    def loss(params):
        out = dense.apply({"params": params}, x)
        assert out.dtype == jnp.bfloat16
        return (out.astype(jnp.float32) * pull.astype(jnp.float32)).sum()

    found = jax.grad(loss)(params)
    exact = np.float64(x).T @ np.float64(pull)
    assert np.allclose(found["kernel"], exact, rtol=1e-5, atol=1e-5)
    assert np.allclose(found["bias"], np.float64(pull).sum(0), rtol=1e-5, atol=1e-5)


def test_a_dense_layer_is_flax_s_in_float32():
    x = jax.random.normal(jax.random.key(1), (7, 6))
    ours, flax = layers.Dense(5, jnp.float32, name="a"), nn.Dense(5, kernel_init=layers._dense_init, name="a")
    params = ours.init(jax.random.key(0), x)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(flax.init(jax.random.key(0), x))))  # fmt: skip

    def gradients(module):
        return jax.grad(lambda p, x: (module.apply(p, x) ** 2).sum(), argnums=(0, 1))(params, x)

    for a, b in zip(jax.tree.leaves(gradients(ours)), jax.tree.leaves(gradients(flax))):
        assert np.allclose(a, b, rtol=1e-5, atol=1e-6)
