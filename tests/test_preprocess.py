import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionx_jax import contract, preprocess
from fusionx_jax.errors import InputError
from fusionx_jax.modalities import NODATA


@pytest.fixture
def mods(simulated):
    return contract.load(simulated).modalities


def test_decoding_on_the_device_equals_the_contract_in_numpy(simulated, mods):
    from fusionx_jax.prepared import store

    wire = store.PreparedSet(simulated).read("train", np.arange(4), ["s1", "s2"])
    images, valid = preprocess.make_normalizer(mods, mods)(jax.tree.map(jnp.asarray, wire))
    assert valid is None
    for name, m in mods.items():
        physical = wire[name] * np.float64(m.scale) + m.offset
        assert np.allclose(images[name], (physical - m.mean) / m.std, atol=1e-4)


def test_training_split_is_standardized_by_its_own_statistics(simulated, mods):
    from fusionx_jax.prepared import store

    wire = store.PreparedSet(simulated).read("train", np.arange(140), ["s1", "s2"])
    images, _ = preprocess.make_normalizer(mods, mods)(jax.tree.map(jnp.asarray, wire))
    for image in images.values():
        assert np.abs(np.mean(image, axis=(0, 1, 2))).max() < 1e-3
        assert np.abs(np.std(image, axis=(0, 1, 2)) - 1).max() < 1e-3


def test_bands_are_reordered_by_name_and_undo_gives_physical_values(mods):
    weights = dict(mods)
    s2 = mods["s2"]
    picked = ("B08", "B04")
    place = [s2.bands.index(b) for b in picked]
    weights["s2"] = dataclasses.replace(
        s2, bands=picked, mean=tuple(s2.mean[i] for i in place), std=tuple(s2.std[i] for i in place)
    )
    normalizer = preprocess.make_normalizer(mods, weights)
    wire = {"s2": np.random.default_rng(0).integers(1000, 5000, (2, 8, 8, 12)).astype(np.uint16)}
    images, _ = normalizer(jax.tree.map(jnp.asarray, wire))
    assert images["s2"].shape[-1] == 2
    physical = normalizer.undo("s2", np.asarray(images["s2"]))
    assert np.allclose(physical, wire["s2"][..., place].astype(float) - 1000, atol=0.5)


def test_pixels_without_data_are_marked_and_neutral(mods):
    gappy = {n: dataclasses.replace(m, nodata_fraction=0.1) for n, m in mods.items()}
    normalizer = preprocess.make_normalizer(gappy, gappy)
    wire = {"s1": np.full((1, 8, 8, 2), 30000, np.uint16), "s2": np.full((1, 8, 8, 12), 3000, np.uint16)}
    wire["s1"][0, :4] = NODATA
    images, valid = normalizer(jax.tree.map(jnp.asarray, wire))
    assert (images["s1"][0, :4] == 0).all()
    assert not valid["s1"][0, :4].any()
    assert valid["s1"][0, 4:].all()
    assert valid["s2"].all()
    assert preprocess.patch_has_data(valid, 4)["s1"].tolist() == [[False, False, True, True]]


def test_augmentation_moves_all_modalities_together_and_keeps_every_pixel():
    base = jnp.arange(6 * 8 * 8).reshape(6, 8, 8, 1).astype(jnp.uint16)
    out = preprocess.augment(jax.random.key(0), {"s1": base, "s2": base + 1000}, 0, True)
    assert (out["s2"] - out["s1"] == 1000).all()
    assert (np.sort(out["s1"].reshape(6, -1), axis=1) == base.reshape(6, -1)).all()
    seen = {
        tuple(np.asarray(preprocess.augment(jax.random.key(k), {"a": base[:1]}, 0, True)["a"]).ravel())
        for k in range(60)
    }
    assert len(seen) == 8  # the square's symmetries


def test_crops_differ_by_example_and_stay_inside():
    base = jnp.broadcast_to(jnp.arange(64).reshape(1, 8, 8, 1), (32, 8, 8, 1)).astype(jnp.uint16)
    out = np.asarray(preprocess.augment(jax.random.key(0), {"a": base}, 4, False)["a"])
    assert out.shape == (32, 4, 4, 1)
    corners = set(out[:, 0, 0, 0].tolist())
    assert len(corners) > 5
    for crop in out[..., 0]:
        assert (crop == crop[0, 0] + np.arange(4)[:, None] * 8 + np.arange(4)).all()


def test_odd_sizes_are_padded_with_no_data_only():
    wire = {"a": jnp.ones((1, 10, 13, 2), jnp.uint16)}
    out = preprocess.pad_to_multiple(wire, 8, {"a": NODATA})["a"]
    assert out.shape == (1, 16, 16, 2)
    assert (out[:, :10, :13] == 1).all()
    assert (out == NODATA).sum() == (256 - 130) * 2


def test_padding_makes_the_normalizer_look_for_missing_pixels(mods):
    assert not preprocess.make_normalizer(mods, mods, patch_size=8).masked
    assert preprocess.make_normalizer(mods, mods, patch_size=12).masked
    assert preprocess.make_normalizer(mods, mods, side=20, patch_size=8).masked


def test_patch_larger_than_the_tile_is_refused():
    with pytest.raises(InputError, match="patch_size is 64"):
        preprocess.check_patch((32, 32), 64, "set")


def test_views_differ_between_sensors_and_examples_and_keep_no_data_out():
    images = {n: jax.random.normal(jax.random.key(c), (4, 16, 16, c)) for n, c in (("s1", 2), ("s2", 3))}
    valid = {n: jnp.ones((4, 16, 16), bool).at[0, :, :8].set(False) for n in images}
    images = {n: jnp.where(valid[n][..., None], x, 0.0) for n, x in images.items()}
    make = functools.partial(preprocess.random_views, least_area=0.4, gain=0.2, noise=0.1)
    views, seen = jax.jit(make)(jax.random.key(0), images, valid)
    again, _ = jax.jit(make)(jax.random.key(0), images, valid)
    for name in images:
        assert views[name].shape == images[name].shape
        assert (views[name] == again[name]).all()
        assert (np.asarray(views[name])[~np.asarray(seen[name])] == 0).all()
        assert 0 < np.asarray(seen[name])[0].mean() < 1
        assert np.asarray(seen[name])[1:].all()
    still, _ = preprocess.random_views(jax.random.key(1), images, None, least_area=1.0, gain=0.0, noise=0.0)
    for name, x in images.items():  # nothing but one of the square's symmetries is left
        assert np.allclose(np.sort(still[name].reshape(4, -1)), np.sort(np.asarray(x).reshape(4, -1)), atol=1e-5)
