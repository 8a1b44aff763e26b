import jax
import numpy as np
import pytest

import fusionx_jax
from fusionx_jax import encoder as encoder_lib
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import evaluation, features
from fusionx_jax.prepared import sets
from tests.helpers import run_script


@pytest.fixture(scope="module")
def encoder(trained):
    return fusionx_jax.load(trained)


@pytest.fixture(scope="module")
def images(simulated):
    """Eleven test tiles in physical units."""
    prepared = sets.open_sets(simulated)
    wire = prepared.read("test", np.arange(11), ["s1", "s2"])
    return {n: modalities_lib.decode(w, *_scale(prepared, n)) for n, w in wire.items()}


def _scale(prepared, name):
    m = prepared.contract.modalities[name]
    return m.scale, m.offset


@pytest.mark.parametrize("shown", [("s1", "s2"), ("s1",), ("s2",)])
def test_features_are_those_that_the_evaluation_probes(encoder, images, trained, simulated, shown):
    setting = evaluation.open_evaluation(trained, simulated, [])
    pools = features.extract(setting.trained, setting.prepared, "test", shown, 40)
    out = encoder.encode({n: images[n] for n in shown}, batch_size=4)  # an uneven last batch
    assert np.allclose(out.pooled, encoder_lib.assemble(pools, "mean_std")[:11], atol=1e-4)
    assert np.allclose(out.summary, pools["class"][:11], atol=1e-4)
    assert out.tokens["s" + shown[-1][1]].shape == (11, 4, 4, 128)


def test_bands_are_put_in_order_by_name(encoder, images):
    back = {"s2": images["s2"][..., ::-1]}
    named = encoder.encode(back, bands={"s2": encoder.modalities["s2"].bands[::-1]})
    assert np.array_equal(named.pooled, encoder.encode({"s2": images["s2"]}).pooled)


def test_pixels_without_data_and_sides_that_are_no_multiple_of_the_patch_are_left_out(encoder, images):
    whole = encoder.encode({"s1": images["s1"][:, :, :27]})
    gone = images["s1"].copy()
    gone[:, :, 27:] = np.nan
    blanked = encoder.encode({"s1": gone})
    assert np.allclose(whole.pooled, blanked.pooled, atol=1e-4)
    assert np.isfinite(blanked.pooled).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: {}, "No images are given"),
        (lambda x: {"s3": x["s1"]}, "no modality s3 .* it has s1, s2"),
        (lambda x: {"s1": x["s1"][0]}, r"must be \[tiles, height, width, 2\] with the bands VV, VH"),
        (lambda x: {"s2": x["s2"][..., :4]}, "B01, B02"),
        (lambda x: {"s1": 10 ** (x["s1"] / 10)}, "linear power"),
        (lambda x: {"s2": x["s2"] / 1e4}, "reflectance in 0..1"),
        (lambda x: {"s1": x["s1"][:, :16], "s2": x["s2"]}, "differ in tiles, height or width"),
        (lambda x: {"s1": x["s1"].astype(complex)}, "holds complex128; give real numbers"),
        (lambda x: {"s1": x["s1"].astype(str)}, "give real numbers"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_both_sides(encoder, images, change, words):
    with pytest.raises(InputError, match=words):
        encoder.encode(change(images))
    with pytest.raises(InputError, match="lacks the band VH"):
        encoder.encode({"s1": images["s1"]}, bands={"s1": ("VV", "HH")})
    with pytest.raises(InputError, match="names VV twice"):
        encoder.encode({"s1": images["s1"]}, bands={"s1": ("VV", "VV")})
    with pytest.raises(InputError, match="batch_size is 0"):
        encoder.encode(images, batch_size=0)


def test_a_tile_without_any_data_has_no_features(encoder, images):
    some = {n: x.copy() for n, x in images.items()}
    some["s1"][3] = np.nan
    some["s1"][5] = some["s2"][5] = np.nan
    out = encoder.encode(some)
    for values in (out.pooled, out.summary, *out.tokens.values()):
        assert np.isnan(values[5]).all()
        assert np.isfinite(np.delete(values, 5, axis=0)).all()


def test_a_notebook_needs_no_tensorflow_and_importing_is_quick(trained):
    script = """
import sys, time
start = time.perf_counter()
import fusionx_jax
assert time.perf_counter() - start < 1 and "jax" not in sys.modules
encoder = fusionx_jax.load(sys.argv[1])
import numpy as np
assert encoder.encode({"s1": np.full((2, 32, 32, 2), -12.0)}).pooled.shape == (2, 256)
assert "tensorflow" not in sys.modules
"""
    done = run_script(script, trained)
    assert done.returncode == 0, done.stderr[-2000:]


def test_only_the_encoder_is_read(encoder):
    assert set(encoder.params) == {"encoder"}
    assert sum(x.size for x in jax.tree.leaves(encoder.params)) < 2_000_000
