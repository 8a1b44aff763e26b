"""`encode`: arrays that are no tiles, in other units, of other types, shapes and bands."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusionx_jax
from tests.fuzz.doors import handled, inputs, texts

DTYPES = ("float64", "float32", "float16", "int8", "int16", "int64", "uint8", "uint16", "uint64", "bool", "complex64", "U3", "O", "M8[s]")  # fmt: skip
FILLS = (-12.0, 0.0, 3.0, -80.0, 1e-3, 0.3, 800.0, 10_000.0, 65535.0, -9999.0, -32768.0, 1e30, np.nan, np.inf, -np.inf)
SHAPES = ((2, 32, 32), (1, 8, 8), (1, 1, 1), (3, 20, 12), (0, 32, 32), (2, 0, 8), (2, 32), (32, 32), (), (1, 2, 3, 4))


@pytest.fixture(scope="module")
def encoder(trained):
    return fusionx_jax.load(trained)


@st.composite
def images(draw, bands):
    shape = (*draw(st.sampled_from(SHAPES)), draw(st.sampled_from([bands, bands, bands, 1, 0, bands + 1, 13])))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    fill, spread = draw(st.sampled_from(FILLS)), draw(st.sampled_from([0.0, 1.0, 500.0]))
    with np.errstate(all="ignore"):
        array = fill + spread * rng.normal(size=shape)
        if array.size and draw(st.booleans()):
            array = np.where(
                rng.random(shape) < draw(st.sampled_from([0.01, 0.5, 0.99])), draw(st.sampled_from(FILLS)), array
            )
        dtype = draw(st.sampled_from(("float64", *DTYPES)))
        try:
            return array.astype(dtype)
        except (ValueError, OverflowError):
            return array


@st.composite
def names_of(draw, bands):
    return draw(
        st.one_of(
            st.permutations(bands),
            st.lists(st.sampled_from([*bands, "B99", "vv", "B8"]), max_size=14),
            st.lists(texts, max_size=3),
        )
    )


@inputs(200)
@given(data=st.data())
def test_encode(encoder, data):
    known = {name: list(m.bands) for name, m in encoder.modalities.items()}
    chosen = data.draw(st.lists(st.one_of(st.sampled_from(["s1", "s2"]), texts), max_size=3, unique=True))
    given_images = {name: data.draw(images(len(known.get(name, "ab")))) for name in chosen}
    given_bands = {n: data.draw(names_of(known.get(n, ["VV"]))) for n in chosen if data.draw(st.integers(0, 3)) == 0}

    def encode():
        wire = encoder.to_wire(given_images, given_bands)
        assert all(w.dtype == np.uint16 and w.ndim == 4 and w.size for w in wire.values())
        if all(w.shape[:3] == (2, 32, 32) for w in wire.values()):  # other shapes compile a program each
            out = encoder.encode(given_images, given_bands)
            empty = np.all([(w == 65535).all((1, 2, 3)) for w in wire.values()], axis=0)
            assert (np.isfinite(out.pooled).all(1) == ~empty).all()

    handled(encode)
