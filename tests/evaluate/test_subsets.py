import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import subsets

FRACTIONS = (0.01, 0.05, 0.1, 0.5, 1.0)


def _labels(seed=0, n=2000):
    rng = np.random.default_rng(seed)
    return rng.random((n, 6)) < np.array([0.6, 0.4, 0.2, 0.1, 0.04, 0.02])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_subsets_are_nested_of_exact_size_and_without_repeats(seed):
    drawn = subsets.nested_subsets(_labels(seed), FRACTIONS, seed)
    for fraction, positions in drawn.items():
        assert len(set(positions.tolist())) == len(positions) == round(fraction * 2000)
    for small, large in itertools.pairwise(FRACTIONS):
        assert set(drawn[small]) <= set(drawn[large])


def test_label_shares_of_subsets_are_closer_than_chance():
    labels = _labels()
    shares = labels.mean(0)
    ours, chance = [], []
    for seed in range(5):
        drawn = subsets.nested_subsets(labels, FRACTIONS, seed)[0.05]
        ours.append(np.abs(labels[drawn].mean(0) - shares))
        random = np.random.default_rng(seed).permutation(2000)[:100]
        chance.append(np.abs(labels[random].mean(0) - shares))
    assert np.mean(ours) < 0.35 * np.mean(chance)
    assert labels[drawn].any(0).all()  # rare classes are there


def test_single_label_subsets_hold_every_class_in_proportion():
    labels = np.eye(3, dtype=bool)[np.repeat([0, 1, 2], [800, 150, 50])]
    drawn = subsets.nested_subsets(labels, (0.1, 1.0), 0)[0.1]
    assert labels[drawn].sum(0).tolist() == [80, 15, 5]


def test_seeds_differ_and_repeat():
    a, b, again = (subsets.nested_subsets(_labels(), (0.05,), s)[0.05] for s in (0, 1, 0))
    assert (a == again).all()
    assert len(set(a) & set(b)) < 30


def test_id_files_come_back_as_they_went(tmp_path):
    ids = [f"tile-{i}" for i in range(2000)]
    drawn = subsets.draw(_labels(), FRACTIONS, (2,), 3)
    assert list(drawn) == [*(f"{f:g}" for f in sorted(FRACTIONS)), "2-shot"]
    subsets.write(str(tmp_path), ids, drawn, 3)
    back = subsets.read(str(tmp_path), ids, list(drawn), 3)
    for label in drawn:
        assert (back[label] == drawn[label]).all()
    assert subsets.read(str(tmp_path), ids, list(drawn), 4) is None
    with pytest.raises(InputError, match="not in the training split"):
        subsets.read(str(tmp_path), ids[:50], list(drawn), 3)


def test_k_shot_holds_k_of_every_class_and_is_nested():
    single = np.eye(4, dtype=bool)[np.repeat([0, 1, 2, 3], [500, 100, 30, 3])]
    drawn = subsets.k_shot(single, (5, 1, 20), 0)
    assert single[drawn[5]].sum(0).tolist() == [5, 5, 5, 3]  # the rare class has three
    assert single[drawn[20]].sum(0).tolist() == [20, 20, 20, 3]
    multi = _labels()
    drawn = subsets.k_shot(multi, (1, 5), 1)
    assert (multi[drawn[5]].sum(0) >= np.minimum(5, multi.sum(0))).all()
    assert set(drawn[1]) <= set(drawn[5])
    assert len(drawn[5]) <= 5 * multi.shape[1]
    with pytest.raises(InputError, match="at least 1"):
        subsets.k_shot(multi, (0,), 0)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, 0.0001])
def test_fractions_that_leave_nothing_are_refused(fraction):
    with pytest.raises(InputError, match=r"fraction"):
        subsets.nested_subsets(_labels(), (fraction,), 0)


def test_ids_with_blanks_come_back(tmp_path):
    ids = [f"area {i}_r0_c0" for i in range(10)]
    subsets.write(str(tmp_path), ids, {"0.5": np.arange(5)}, 0)
    assert subsets.read(str(tmp_path), ids, ("0.5",), 0)["0.5"].tolist() == [0, 1, 2, 3, 4]
    marked = "\ufeffarea 1_r0_c0\r\narea 3_r0_c0 \r\n\r\n"  # as Windows programs write it
    (tmp_path / subsets.file_name("0.5", 0)).write_text(marked, encoding="utf-8", newline="")
    assert subsets.read(str(tmp_path), ids, ("0.5",), 0)["0.5"].tolist() == [1, 3]
    (tmp_path / subsets.file_name("0.5", 0)).write_text("area 1_r0_c0\narea 1_r0_c0\narea 2_r0_c0\n")
    with pytest.raises(InputError, match="2 of them distinct"):
        subsets.read(str(tmp_path), ids, ("0.5",), 0)
