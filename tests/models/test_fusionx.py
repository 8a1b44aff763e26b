import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from fusionx_jax import masking
from fusionx_jax.errors import InputError
from fusionx_jax.models import build, fusionx, network
from fusionx_jax.prepared import sets

SIZE = network.Size(16, 2, 2, 8, 1, 2)


@functools.cache
def run(model, method="__call__"):
    """A compiled method: op by op, a test would compile a hundred small programs."""
    return jax.jit(functools.partial(model.apply, method=method))


@functools.cache
def fresh(model):
    return {"params": jax.jit(functools.partial(build.init_params, model))(jax.random.key(0))}


def make(names=("s1", "s2"), **changes):
    channels = tuple((n, i + 2) for i, n in enumerate(names))
    config = network.NetworkConfig(channels=channels, patch_size=4, size=SIZE, **changes)
    model = fusionx.FusionX(config)
    key = jax.random.key(0)
    images = {n: jax.random.normal(jax.random.fold_in(key, c), (3, 16, 16, c)) for n, c in channels}
    masks = masking.Independent()(key, 3, dict.fromkeys(names, (4, 4)), dict.fromkeys(names, 4))
    params = fresh(model)
    # Fresh networks hide dependencies behind small tokens and zero biases: stir every parameter.
    leaves, tree = jax.tree.flatten(params)
    noise = [p + 0.3 * jax.random.normal(jax.random.fold_in(key, 100 + i), p.shape) for i, p in enumerate(leaves)]
    return model, jax.tree.unflatten(tree, noise), images, masks


def test_prediction_has_every_hidden_patch_and_twice_the_pixels_for_two_targets():
    model, params, images, masks = make()
    out = run(model)(params, images, masks).predicted
    assert out["s1"].shape == (3, 12, 4 * 4 * 2 * 2)
    assert out["s2"].shape == (3, 12, 4 * 4 * 3 * 2)
    model, params, images, masks = make(target="normalized")
    assert run(model)(params, images, masks).predicted["s1"].shape == (3, 12, 4 * 4 * 2)


def test_hidden_pixels_do_not_reach_the_prediction():
    model, params, images, masks = make()
    hidden = np.zeros((3, 16), bool)
    np.put_along_axis(hidden, np.asarray(masks["s2"].hidden), True, axis=1)
    pixels = hidden.reshape(3, 4, 4).repeat(4, 1).repeat(4, 2)[..., None]
    changed = {**images, "s2": jnp.where(pixels, 99.0, images["s2"])}
    for name, out in run(model)(params, images, masks).predicted.items():
        assert np.allclose(out, run(model)(params, changed, masks).predicted[name], atol=1e-5)


def _cross_reach(cross_attention):
    """Whether SAR pixels reach the optical tokens of an encoder without joint blocks, and the optical prediction."""
    size = dataclasses.replace(SIZE, depth=0)
    names = ("s1", "s2")
    config = network.NetworkConfig((("s1", 2), ("s2", 3)), 4, size, cross_attention)
    model = fusionx.FusionX(config)
    key = jax.random.key(0)
    images = {n: jax.random.normal(jax.random.fold_in(key, c), (1, 16, 16, c)) for n, c in config.channels}
    masks = masking.Independent()(key, 1, dict.fromkeys(names, (4, 4)), dict.fromkeys(names, 4))
    params = fresh(model)
    other = {**images, "s1": images["s1"] + 1.0}
    tokens = [run(model, "encode")(params, i, masks).groups["s2"] for i in (images, other)]
    return params["params"], not np.allclose(tokens[0], tokens[1], atol=1e-6)


def test_cross_attention_switches_say_where_sensors_meet():
    for where in network.CROSS_ATTENTION:
        params, meets = _cross_reach(where)
        assert meets  # in the first block, by cross-attention or by a joint block
        assert any(k.startswith("fusion_") for k in params["encoder"]) == (where in ("both", "encoder"))
        assert any(k.startswith("cross_") for k in params["decoder"]) == (where in ("both", "decoder"))


def test_without_other_modalities_the_cross_attention_term_is_left_out():
    model, params, images, _ = make()
    first, tokens, _ = run(model, "encode")(params, {"s1": images["s1"]})
    assert set(tokens) == {"s1"}
    assert tokens["s1"].shape == (3, 16, 16)
    # Nothing of the absent sensor's parameters matters.
    stirred = jax.tree_util.tree_map_with_path(
        lambda path, p: p + 5.0 if any("s2" in str(k) or "fusion_s1" in str(k) for k in path) else p, params
    )
    again, *_ = run(model, "encode")(stirred, {"s1": images["s1"]})
    assert np.allclose(first, again)


def test_a_masked_out_modality_is_the_same_as_an_absent_one():
    model, params, images, _ = make()
    alone, *_ = run(model, "encode")(params, {"s1": images["s1"]})
    has_data = {"s1": jnp.ones((3, 16), bool), "s2": jnp.zeros((3, 16), bool)}
    masked, *_ = run(model, "encode")(params, images, None, has_data)
    assert np.allclose(alone, masked, atol=1e-5)


def test_three_modalities_run_through_the_same_code_and_all_meet():
    names = ("dem", "s1", "s2")
    model, params, images, masks = make(names)
    out = run(model)(params, images, masks).predicted
    assert set(out) == set(names)
    base, *_ = run(model, "encode")(params, images)
    for name in names:
        other, *_ = run(model, "encode")(params, {**images, name: images[name] + 1.0})
        assert not np.allclose(base, other, atol=1e-4)


def test_every_parameter_has_a_gradient():
    for where in network.CROSS_ATTENTION:
        model, params, images, masks = make(cross_attention=where)

        def loss(p, model=model, images=images, masks=masks):
            return sum((o**2).mean() for o in model.apply(p, images, masks).predicted.values())

        dead = [
            jax.tree_util.keystr(path)
            for path, g in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params))
            if not np.abs(g).max() > 0
        ]
        assert not dead


def test_tiles_of_another_size_need_no_new_parameters():
    model, params, _, _ = make()
    for height, width in ((8, 16), (24, 32)):
        images = {"s1": jnp.ones((1, height, width, 2)), "s2": jnp.ones((1, height, width, 3))}
        _, tokens, _ = run(model, "encode")(params, images)
        assert tokens["s1"].shape[1] == height * width // 16


@pytest.mark.parametrize("size", sorted(network.SIZES))
def test_named_sizes_have_the_parameters_of_their_family(size):
    config = network.NetworkConfig((("s1", 2), ("s2", 12)), 16, network.SIZES[size])
    shapes = jax.eval_shape(lambda: build.init_params(fusionx.FusionX(config), jax.random.key(0)))
    encoder = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes["encoder"]))
    s = network.SIZES[size]
    blocks = s.depth * (12 * s.width**2 + 13 * s.width)
    # First block: per modality a cross-attention and a norm, one shared MLP and its norm; embeddings; tokens; norm.
    first = 2 * (4 * s.width**2 + 4 * s.width + 2 * s.width) + 8 * s.width**2 + 5 * s.width + 2 * s.width
    embed = 14 * 16**2 * s.width + 2 * s.width
    assert encoder == blocks + first + embed + 3 * s.width + 2 * s.width


def test_bfloat16_computes_close_to_float32_with_float32_parameters():
    model, params, images, masks = make()
    half = fusionx.FusionX(dataclasses.replace(model.config, dtype="bfloat16"))
    params = fresh(half)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    for name, full in run(model)(params, images, masks).predicted.items():
        low = run(half)(params, images, masks).predicted[name]
        assert low.dtype == jnp.float32
        assert np.linalg.norm(low - full) / np.linalg.norm(full) < 0.03


def test_values_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(InputError, match="both, encoder, decoder, none"):
        make(cross_attention="middle")
    with pytest.raises(InputError, match="normalized, raw, both"):
        make(target="pixels")
    with pytest.raises(InputError, match="others, all"):
        make(decoder_context="none")


def test_a_decoder_that_attends_to_all_sees_its_own_sensor_too():
    model, params, images, masks = make(cross_attention="decoder", decoder_context="all")
    alone = {"s1": images["s1"]}
    before = run(model)(params, alone, {"s1": masks["s1"]}).predicted["s1"]
    stirred = jax.tree_util.tree_map_with_path(
        lambda path, p: p * 2 if any("cross_s1" in str(k) for k in path) else p, params
    )
    assert not np.allclose(before, run(model)(stirred, alone, {"s1": masks["s1"]}).predicted["s1"], atol=1e-4)


def test_own_blocks_and_what_is_contrasted_know_one_sensor_alone():
    model, params, images, masks = make(own_depth=1, contrastive=True)
    changed = {**images, "s2": images["s2"] + 1.0}
    before, after = (run(model)(params, x, masks) for x in (images, changed))
    assert np.allclose(before.embedded["s1"], after.embedded["s1"], atol=1e-6)
    assert not np.allclose(before.embedded["s2"], after.embedded["s2"], atol=1e-3)
    assert not np.allclose(before.predicted["s1"], after.predicted["s1"], atol=1e-3)
    assert set(params["params"]["encoder"]) >= {"own_s1", "own_s2"}
    assert params["params"]["encoder"]["blocks"]["scan"]["norm1"]["scale"].shape[0] == SIZE.depth - 1


def test_the_share_of_own_blocks_follows_the_size_and_must_be_a_share(simulated):
    contract = sets.open_sets(simulated).contract
    for size, depth in (("mini", 3), ("base", 8), ("large", 17)):  # three quarters of 4, 11 and 23 joint blocks
        config = default.get_config()
        config.model.size = size
        assert build.make_model(config, contract.modalities).config.own_depth == depth
    config.model.own_share = 1.5
    with pytest.raises(InputError, match="own_share is 1.5; it must lie between 0 and 1"):
        build.make_model(config, contract.modalities)


@pytest.mark.slow
def test_computing_blocks_again_changes_memory_and_not_gradients():
    def compiled(remat):
        size = dataclasses.replace(SIZE, width=64, depth=12)
        model = fusionx.FusionX(network.NetworkConfig((("s1", 2), ("s2", 3)), 4, size, remat=remat))
        _, _, images, masks = make()

        def loss(p):
            return sum((o**2).mean() for o in model.apply(p, images, masks).predicted.values())

        return jax.jit(jax.grad(loss)).lower(fresh(model)).compile(), fresh(model)

    program, params = compiled("none")
    whole, memory = program(params), program.memory_analysis().temp_size_in_bytes
    for remat in ("dots", "full"):
        program, same = compiled(remat)
        jax.tree.map(np.testing.assert_array_equal, params, same)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, program(params))
        assert program.memory_analysis().temp_size_in_bytes < memory
        memory = program.memory_analysis().temp_size_in_bytes
    with pytest.raises(InputError, match="none, dots, full"):
        make(remat="some")
