import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx_jax import masking
from fusionx_jax.errors import InputError

GRID = {"s1": (4, 4), "s2": (4, 4)}
OPTIONS = {"dirichlet": {"alpha": 1.0}, "block": {"block_size": 2}, "modality_drop": {"drop": 0.5}}


PARTITIONS = ("independent", "consistent", "complementary", "block")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 8), st.sampled_from(PARTITIONS))
def test_visible_and_hidden_partition_the_grid_for_every_example(seed, visible, name):
    masks = masking.strategy(name, OPTIONS)(jax.random.key(seed), 5, GRID, dict.fromkeys(GRID, visible))
    for mask in masks.values():
        assert mask.visible.shape == (5, visible)
        together = np.sort(np.concatenate([mask.visible, mask.hidden], axis=1), axis=1)
        assert (together == np.arange(16)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 8), st.sampled_from(["dirichlet", "modality_drop"]))
def test_where_shares_vary_counted_slots_partition_the_grid(seed, visible, name):
    masks = masking.strategy(name, OPTIONS)(jax.random.key(seed), 5, GRID, dict.fromkeys(GRID, visible))
    for mask in masks.values():
        for b in range(5):
            shown = np.asarray(mask.visible)[b][np.asarray(mask.visible_ok)[b]]
            guessed = np.asarray(mask.hidden)[b][np.asarray(mask.hidden_ok)[b]]
            assert sorted([*shown, *guessed]) == list(range(16))
    total = sum(np.asarray(m.visible_ok).sum(1) for m in masks.values())
    if name == "dirichlet":
        capped = any((np.asarray(m.visible_ok).sum(1) == 15).any() for m in masks.values())
        assert (total == 2 * visible).all() or capped
    else:
        assert set(total.tolist()) <= {visible, 2 * visible}


def test_dirichlet_shares_have_the_spread_of_their_alpha():
    for alpha in (0.3, 1.0, 5.0):
        masks = masking.Dirichlet(alpha)(jax.random.key(3), 3000, {"a": (8, 8), "b": (8, 8)}, {"a": 16, "b": 16})
        share = np.asarray(masks["a"].visible_ok).sum(1) / 32
        assert share.mean() == pytest.approx(0.5, abs=0.03)
        assert share.var() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.12)  # of a symmetric Dirichlet of two


def test_modality_drop_hides_one_whole_sensor_as_often_as_asked():
    masks = masking.ModalityDrop(0.4)(jax.random.key(0), 4000, GRID, dict.fromkeys(GRID, 4))
    gone = {m: (np.asarray(v.visible_ok).sum(1) == 0) for m, v in masks.items()}
    assert not (gone["s1"] & gone["s2"]).any()
    assert gone["s1"].mean() == pytest.approx(0.2, abs=0.03)
    assert gone["s2"].mean() == pytest.approx(0.2, abs=0.03)


def test_complementary_masks_never_show_a_place_twice_and_refuse_to():
    masks = masking.Complementary()(jax.random.key(0), 8, GRID, dict.fromkeys(GRID, 8))
    for a, b in zip(np.asarray(masks["s1"].visible), np.asarray(masks["s2"].hidden)):
        assert set(a.tolist()) == set(b.tolist())  # half and half: what one shows the other hides
    with pytest.raises(InputError, match="one modality at most"):
        masking.Complementary()(jax.random.key(0), 8, GRID, dict.fromkeys(GRID, 9))


def test_blocks_show_whole_squares():
    masks = masking.Block(2)(jax.random.key(0), 20, GRID, {"s1": 4, "s2": 8})
    for name, squares in (("s1", 1), ("s2", 2)):
        for row in np.asarray(masks[name].visible):
            assert len({(p // 4 // 2, p % 4 // 2) for p in row.tolist()}) == squares


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "dirichlet",
            {"dirichlet": {"alpha": 0.0}},
            "masking_options.dirichlet.alpha is 0.0; it must be greater than 0",
        ),
        ("block", {"block": {"block_size": 0}}, "masking_options.block.block_size is 0"),
        ("modality_drop", {"modality_drop": {"drop": 1.5}}, "drop is 1.5; it must be greater than 0 and at most 1"),
        (
            "dirichlet",
            {"dirichlet": {"alpha": 1.0, "beta": 2.0}},
            "has the option beta, but masking 'dirichlet' has alpha",
        ),
        ("dirichlet", {}, "masking_options.dirichlet lacks alpha"),
        ("independent", {"independent": {"alpha": 1.0}}, "masking 'independent' has no options"),
        ("independent", {"magic": {}}, "no masking 'magic'"),
        ("magic", {}, "no masking 'magic'; the known ones are independent, consistent"),
    ],
)
def test_options_that_are_unknown_missing_or_out_of_range_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        masking.strategy(name, options)


def test_independent_masks_differ_between_sensors_and_examples():
    masks = masking.Independent()(jax.random.key(0), 64, GRID, {"s1": 4, "s2": 8})
    s1 = np.sort(masks["s1"].visible, axis=1)
    assert len({tuple(row) for row in s1.tolist()}) > 50
    shared = np.mean([len(set(a.tolist()) & set(b.tolist())) for a, b in zip(masks["s1"].visible, masks["s2"].visible)])
    assert 1.0 < shared < 3.0  # 4 * 8 / 16 = 2 expected by chance


def test_consistent_masks_show_the_same_places():
    masks = masking.Consistent()(jax.random.key(0), 8, GRID, dict.fromkeys(GRID, 4))
    assert (masks["s1"].visible == masks["s2"].visible).all()


def test_consistent_masking_refuses_unequal_ratios():
    with pytest.raises(InputError, match="same patches"):
        masking.Consistent()(jax.random.key(0), 8, GRID, {"s1": 4, "s2": 8})


@pytest.mark.parametrize("name", sorted(masking.MASKINGS))
def test_patches_without_data_are_never_visible(name):
    has_data = {"s1": jnp.ones((6, 16), bool).at[:, :13].set(False), "s2": jnp.ones((6, 16), bool)}
    masks = masking.strategy(name, OPTIONS)(jax.random.key(1), 6, GRID, dict.fromkeys(GRID, 4), has_data)
    for modality, mask in masks.items():
        taken = np.take_along_axis(np.asarray(has_data[modality]), np.asarray(mask.visible), axis=1)
        assert not (np.asarray(mask.visible_ok) & ~taken).any()
        if name in PARTITIONS:
            assert (taken == np.asarray(mask.visible_ok)).all()
    if name == "independent":
        assert masks["s1"].visible_ok.sum() == 6 * 3  # three patches with data, four places


def test_each_patch_is_visible_equally_often():
    masks = masking.Independent()(jax.random.key(2), 4000, {"s1": (4, 4)}, {"s1": 4})
    share = np.bincount(np.asarray(masks["s1"].visible).ravel(), minlength=16) / 4000
    assert np.abs(share - 0.25).max() < 0.04  # five standard deviations


@pytest.mark.parametrize(("ratio", "count"), [(0.75, 16), (0.9, 6), (0.999, 1), (0.001, 63)])
def test_num_visible_leaves_one_to_see_and_one_to_guess(ratio, count):
    assert masking.num_visible(64, ratio) == count


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5])
def test_mask_ratio_outside_zero_to_one_is_refused(ratio):
    with pytest.raises(InputError, match="mask_ratio"):
        masking.num_visible(64, ratio)
