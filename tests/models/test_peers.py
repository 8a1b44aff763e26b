import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionx_jax import config as config_lib
from fusionx_jax import losses, masking
from fusionx_jax.errors import InputError
from fusionx_jax.models import build, network, peers
from tests.helpers import ROOT

SIZE = network.Size(16, 2, 2, 8, 1, 2)
NAMES = ("s1", "s2")
CONFIG = network.NetworkConfig((("s1", 2), ("s2", 3)), 4, SIZE)


@functools.cache
def made(family, **changes):
    """A network with stirred parameters, images and masks that suit it."""
    import dataclasses

    model = build.NETWORKS[family](dataclasses.replace(CONFIG, **changes))
    key = jax.random.key(0)
    images = {n: jax.random.normal(jax.random.fold_in(key, c), (3, 16, 16, c)) for n, c in CONFIG.channels}
    strategy = masking.Consistent() if family == "stacked" else masking.Independent()
    masks = strategy(key, 3, dict.fromkeys(NAMES, (4, 4)), dict.fromkeys(NAMES, 4))
    leaves, tree = jax.tree.flatten(jax.jit(functools.partial(build.init_params, model))(key))
    noise = [p + 0.3 * jax.random.normal(jax.random.fold_in(key, 9 + i), p.shape) for i, p in enumerate(leaves)]
    return model, {"params": jax.tree.unflatten(tree, noise)}, images, masks


@functools.cache
def run(family, method="__call__", **changes):
    model, params, _, _ = made(family, **changes)
    return functools.partial(jax.jit(functools.partial(model.apply, method=method)), params)


CASES = [
    ("stacked", {}),
    ("separate", {}),
    ("croma", {}),
    ("contrastive", {}),
    ("fusionx", {"contrastive": True, "own_depth": 1}),
]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_every_parameter_of_a_pretrained_method_has_a_gradient(family, changes):
    model, params, images, masks = made(family, **changes)

    def loss(p):
        out = model.apply(p, images, masks)
        total = sum((o**2).mean() for o in out.predicted.values())
        return total + (losses.info_nce(out.embedded, 0.5)[0] if out.embedded else 0.0)

    gradients = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params))
    assert not [jax.tree_util.keystr(path) for path, g in gradients if not np.abs(g).max() > 0]


@pytest.mark.parametrize("family", ["stacked", "croma", "separate"])
def test_predictions_have_every_hidden_patch_and_hidden_pixels_do_not_reach_them(family):
    _, _, images, masks = made(family)
    out = run(family)(images, masks).predicted
    assert {n: o.shape for n, o in out.items()} == {"s1": (3, 12, 4 * 4 * 2 * 2), "s2": (3, 12, 4 * 4 * 3 * 2)}
    hidden = np.zeros((3, 16), bool)
    np.put_along_axis(hidden, np.asarray(masks["s2"].hidden), True, axis=1)
    pixels = hidden.reshape(3, 4, 4).repeat(4, 1).repeat(4, 2)[..., None]
    again = run(family)({**images, "s2": jnp.where(pixels, 99.0, images["s2"])}, masks).predicted
    for name, o in out.items():
        assert np.allclose(o, again[name], atol=1e-4)


def test_radar_meets_optical_in_cromas_cross_encoder_alone():
    _, _, images, _ = made("croma")
    before = run("croma", "encode")(images)
    after = run("croma", "encode")({**images, "s2": images["s2"] + 1.0})
    assert np.allclose(before.groups["s1"], after.groups["s1"])
    assert not np.allclose(before.groups["fused"], after.groups["fused"], atol=1e-3)
    alone = run("croma", "encode")({"s2": images["s2"]})
    assert set(alone.groups) == {"s2"}  # absent radar leaves no joint tokens
    assert np.allclose(alone.groups["s2"], before.groups["s2"], atol=1e-5)


def test_separate_autoencoders_never_meet():
    _, _, images, masks = made("separate")
    other = {**images, "s2": images["s2"] + 1.0}
    for before, after in ((run("separate")(i, masks) for i in (images, other)),):
        assert np.allclose(before.predicted["s1"], after.predicted["s1"])
        assert not np.allclose(before.predicted["s2"], after.predicted["s2"], atol=1e-3)
    alone = run("separate", "encode")({"s1": images["s1"]})
    assert np.allclose(alone.groups["s1"], run("separate", "encode")(images).groups["s1"], atol=1e-5)


def test_contrasted_sensors_never_meet():
    _, _, images, _ = made("contrastive")
    before = run("contrastive", "encode")(images).groups
    after = run("contrastive", "encode")({**images, "s2": images["s2"] + 1.0}).groups
    assert np.allclose(before["s1"], after["s1"])
    assert not np.allclose(before["s2"], after["s2"], atol=1e-3)


@pytest.mark.parametrize("family", ["stacked", "resnet"])
def test_stacked_networks_take_zeros_for_an_absent_sensor(family):
    _, _, images, _ = made(family)
    absent = run(family, "encode")({"s1": images["s1"]})
    zeros = run(family, "encode")({**images, "s2": jnp.zeros_like(images["s2"])})
    assert np.allclose(absent.groups["stacked"], zeros.groups["stacked"], atol=1e-5)


def test_patches_without_data_reach_no_token_of_the_others():
    has_data = {n: jnp.ones((3, 16), bool).at[:, 5].set(False) for n in NAMES}
    spoiled = np.zeros((4, 4), bool)
    spoiled[1, 1] = True
    where = jnp.asarray(spoiled.repeat(4, 0).repeat(4, 1))[None, :, :, None]
    for family in ("stacked", "croma", "contrastive"):
        _, _, images, _ = made(family)
        changed = {n: jnp.where(where, 50.0, x) for n, x in images.items()}
        encode = run(family, "encode")
        a, b = (encode(x, None, has_data) for x in (images, changed))
        for name in a.groups:
            assert np.allclose(np.delete(a.groups[name], 5, 1), np.delete(b.groups[name], 5, 1), atol=1e-4)
        assert np.allclose(a.summary, b.summary, atol=1e-4)


def test_patch_statistics_are_those_of_numpy():
    _, _, images, _ = made("croma")
    found = peers.PatchStatistics(CONFIG).apply({"params": {}}, images, method="encode").groups["s2"]
    patch = np.asarray(images["s2"])[1, 4:8, 8:12].reshape(-1, 3)
    assert np.allclose(found[1, 4 + 2], np.concatenate([patch.mean(0), patch.std(0)]), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.family": "magic"}, "fusionx, stacked, croma"),
        ({"model.family": "stacked"}, "needs one mask for all modalities, but masking is .independent."),
        ({"model.family": "croma", "modalities": ("s1",)}, "needs at least 2 modalities, but the config lists 1"),
    ],
)
def test_configs_that_do_not_fit_a_family_are_refused(simulated, changes, words):
    from fusionx_jax.prepared import store

    c = config_lib.load_file(str(ROOT / "configs/demo.py"))
    c.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        build.make_model(c, store.PreparedSet(simulated).contract.modalities)
