import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from ml_collections import ConfigDict

from fusionx_jax import encoder as encoder_lib
from fusionx_jax.evaluate import evaluation, features
from fusionx_jax.prepared import store
from tests.helpers import run_script


@pytest.fixture(scope="module")
def setting(trained, simulated):
    return evaluation.open_evaluation(trained, simulated, [])


def test_every_tile_is_counted_once_whatever_the_batch(setting, simulated):
    encoder = setting.trained
    prepared = store.PreparedSet(simulated)
    whole = features.extract(encoder, prepared, "test", ["s1", "s2"], 40)
    uneven = features.extract(encoder, prepared, "test", ["s1", "s2"], 17)
    for key, value in whole.items():
        assert value.shape == (40, 128)
        assert np.allclose(value, uneven[key], atol=1e-4)


def test_cached_features_are_read_back_and_a_damaged_cache_is_made_again(setting, simulated, tmp_path, monkeypatch):
    encoder = setting.trained
    prepared = store.PreparedSet(simulated)
    first = features.extract(encoder, prepared, "val", ["s1"], 20, str(tmp_path))
    monkeypatch.setattr(prepared, "read", lambda *_: pytest.fail("the cache was not used"))
    again = features.extract(encoder, prepared, "val", ["s1"], 20, str(tmp_path))
    assert all((again[k] == v).all() for k, v in first.items())
    monkeypatch.undo()
    (stored,) = tmp_path.glob("*.npz")
    stored.write_bytes(stored.read_bytes()[:100])
    third = features.extract(encoder, prepared, "val", ["s1"], 20, str(tmp_path))
    assert all(np.allclose(third[k], v) for k, v in first.items())


def test_trained_and_untrained_encoders_have_different_fingerprints(setting):
    both = {"fusionx": setting.trained, "untrained": setting.untrained}
    assert both["fusionx"].fingerprint() != both["untrained"].fingerprint()
    assert both["fusionx"].fingerprint() == setting.trained.fingerprint()


def test_pooling_is_mean_and_deviation_over_tokens_with_data():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 6, 5)).astype(np.float32)
    ok = np.array([[1, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]], bool)
    mean, std = encoder_lib.pool(jnp.asarray(tokens), jnp.asarray(ok))
    for b in range(2):
        assert np.allclose(mean[b], tokens[b][ok[b]].mean(0), atol=1e-5)
        assert np.allclose(std[b], tokens[b][ok[b]].std(0), atol=1e-3)


def test_band_statistics_equal_numpy_on_decoded_tiles(simulated):
    prepared = store.PreparedSet(simulated)
    ours = features.band_statistics(prepared, "val", ["s1", "s2"])
    wire = prepared.read("val", np.arange(20), ["s1", "s2"])
    expected = []
    for name in ("s1", "s2"):
        m = prepared.contract.modalities[name]
        x = (wire[name] * np.float64(m.scale) + m.offset - m.mean) / m.std
        expected += [x.mean((1, 2)), x.std((1, 2))]
    assert np.allclose(ours, np.concatenate(expected, 1), atol=1e-3)


def test_features_do_not_depend_on_batch_mates(setting, simulated):
    encoder = setting.trained
    prepared = store.PreparedSet(simulated)
    pooled = jax.jit(lambda p, w: encoder.with_params(p).pooled(w))
    a = pooled(encoder.params, prepared.read("test", [0, 1, 2, 3], ["s1", "s2"]))
    b = pooled(encoder.params, prepared.read("test", [0, 9, 8, 7], ["s1", "s2"]))
    assert np.allclose(a["s1_mean"][0], b["s1_mean"][0], atol=1e-4)


@pytest.mark.slow
def test_every_tile_is_counted_once_on_eight_devices(trained, simulated, setting, tmp_path):
    script = """
import sys
import jax, numpy as np
from fusionx_jax.evaluate import evaluation, features
assert jax.local_device_count() == 8
setting = evaluation.open_evaluation(sys.argv[1], sys.argv[2], [])
found = features.extract(setting.trained, setting.prepared, "test", ["s1", "s2"], 17)
np.savez(sys.argv[3], **found)
"""
    out = str(tmp_path / "found.npz")
    done = run_script(script, trained, simulated, out, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8"})
    assert done.returncode == 0, done.stderr
    one = features.extract(setting.trained, store.PreparedSet(simulated), "test", ["s1", "s2"], 40)
    with np.load(out) as eight:
        for key, value in one.items():  # 40 tiles in batches of 24: the last is filled up
            assert eight[key].shape == value.shape
            assert np.allclose(eight[key], value, atol=1e-4)


def test_zeros_for_an_absent_sensor_are_shown_and_absence_is_not(setting, simulated):
    encoder = setting.trained
    prepared = store.PreparedSet(simulated)
    wire = {"s1": jnp.asarray(prepared.read("test", [0, 1], ["s1"])["s1"])}
    absent = encoder.tokens(wire)
    filled = dataclasses.replace(encoder, zeros=("s2",)).tokens(wire)
    assert set(absent.groups) == {"s1"}
    assert set(filled.groups) == {"s1", "s2"}
    assert not np.allclose(absent.groups["s1"], filled.groups["s1"], atol=1e-3)


def test_texture_equals_scipy(simulated):
    prepared = store.PreparedSet(simulated)
    got = features.texture(prepared, "test", ["s1"])[:3]
    m = prepared.contract.modalities["s1"]
    wire = prepared.read("test", np.arange(3), ["s1"])["s1"]
    x = (wire * m.scale + m.offset - np.array(m.mean)) / np.array(m.std)
    local = np.sqrt(
        np.maximum(
            scipy.ndimage.uniform_filter(x**2, (0, 3, 3, 0), mode="nearest")
            - scipy.ndimage.uniform_filter(x, (0, 3, 3, 0), mode="nearest") ** 2,
            0,
        )
    )
    gradient = np.hypot(*(np.gradient(x, axis=a) for a in (1, 2)))
    expected = [x.mean((1, 2)), x.std((1, 2)), gradient.mean((1, 2)), local.mean((1, 2))]
    assert np.allclose(got, np.concatenate(expected, axis=1), atol=2e-3)


def test_a_probe_of_principal_components_reads_what_scikit_learn_projects_to():
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    from fusionx_jax.evaluate.evaluators.probe import LinearProbeComponents

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(9, 9))
    train, test = (rng.normal(3, 2, (n, 9)) @ mix for n in (60, 20))
    config = ConfigDict({"components": 4})
    ours = LinearProbeComponents().inputs(config, train, test)
    scaler = StandardScaler().fit(train)
    reference = PCA(4).fit(scaler.transform(train))
    for mine, raw in zip(ours, (train, test)):
        theirs = reference.transform(scaler.transform(raw))
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(abs(mine), abs(theirs), atol=1e-3)  # the sign of an axis is arbitrary
    config.components = 100
    assert LinearProbeComponents().inputs(config, train, test)[0].shape == (60, 9)
