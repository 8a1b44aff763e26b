import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx_jax import masking
from fusionx_jax.contract import InputError

GRID = {"s1": 16, "s2": 16}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 15), st.sampled_from(sorted(masking.STRATEGIES)))
def test_visible_and_hidden_partition_the_grid_for_every_example(seed, visible, name):
    masks = masking.strategy(name)(jax.random.key(seed), 5, GRID, dict.fromkeys(GRID, visible))
    for mask in masks.values():
        assert mask.visible.shape == (5, visible)
        together = np.sort(np.concatenate([mask.visible, mask.hidden], axis=1), axis=1)
        assert (together == np.arange(16)).all()


def test_independent_masks_differ_between_sensors_and_examples():
    masks = masking.independent(jax.random.key(0), 64, GRID, {"s1": 4, "s2": 8})
    s1 = np.sort(masks["s1"].visible, axis=1)
    assert len({tuple(row) for row in s1.tolist()}) > 50
    shared = np.mean([len(set(a.tolist()) & set(b.tolist())) for a, b in zip(masks["s1"].visible, masks["s2"].visible)])
    assert 1.0 < shared < 3.0  # 4 * 8 / 16 = 2 expected by chance


def test_consistent_masks_show_the_same_places():
    masks = masking.consistent(jax.random.key(0), 8, GRID, dict.fromkeys(GRID, 4))
    assert (masks["s1"].visible == masks["s2"].visible).all()


def test_consistent_masking_refuses_unequal_ratios():
    with pytest.raises(InputError, match="same patches"):
        masking.consistent(jax.random.key(0), 8, GRID, {"s1": 4, "s2": 8})


@pytest.mark.parametrize("name", sorted(masking.STRATEGIES))
def test_patches_without_data_are_never_visible(name):
    has_data = {"s1": jnp.ones((6, 16), bool).at[:, :13].set(False), "s2": jnp.ones((6, 16), bool)}
    masks = masking.strategy(name)(jax.random.key(1), 6, GRID, dict.fromkeys(GRID, 4), has_data)
    for modality, mask in masks.items():
        taken = np.take_along_axis(np.asarray(has_data[modality]), np.asarray(mask.visible), axis=1)
        assert (taken == np.asarray(mask.visible_ok)).all()
    if name == "independent":
        assert masks["s1"].visible_ok.sum() == 6 * 3  # three patches with data, four places


def test_each_patch_is_visible_equally_often():
    masks = masking.independent(jax.random.key(2), 4000, {"s1": 16}, {"s1": 4})
    share = np.bincount(np.asarray(masks["s1"].visible).ravel(), minlength=16) / 4000
    assert np.abs(share - 0.25).max() < 0.04  # five standard deviations


@pytest.mark.parametrize(("ratio", "count"), [(0.75, 16), (0.9, 6), (0.999, 1), (0.001, 63)])
def test_num_visible_leaves_one_to_see_and_one_to_guess(ratio, count):
    assert masking.num_visible(64, ratio) == count


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5])
def test_mask_ratio_outside_zero_to_one_is_refused(ratio):
    with pytest.raises(InputError, match="mask_ratio"):
        masking.num_visible(64, ratio)
