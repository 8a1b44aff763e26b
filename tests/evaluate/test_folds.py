import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import folds
from fusionx_jax.evaluate.labels import read_labels
from fusionx_jax.prepared import store


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(5, 12), st.integers(0, 1000))
def test_groups_are_never_divided_and_every_tile_is_scored_once(count, num_groups, seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), rng.integers(3, 9, num_groups))
    present = rng.random((len(groups), 3)) < 0.4
    found = folds.assign_folds(present, groups, count, "a set")
    assert set(found) == set(range(count))
    assert all(len(set(found[groups == g])) == 1 for g in range(num_groups))


def test_too_few_groups_are_refused():
    with pytest.raises(InputError, match=r"evaluate.folds is 4, but a set has 3 group\(s\)"):
        folds.assign_folds(np.ones((9, 1), bool), np.repeat([1, 2, 3], 3), 4, "a set")


def _config(**changes) -> ConfigDict:
    return ConfigDict({"tasks": ("change", "change_pixel"), "score_split": "test", "folds": 0, **changes})


def test_unlabeled_tiles_are_in_no_division(two_dates):
    prepared = store.PreparedSet(two_dates)
    for labels in read_labels(prepared, _config()):
        (division,) = folds.divide(labels, prepared, _config())
        assert {s: len(t) for s, t in division.labels.targets.items() if s != "val"} == {"train": 44, "test": 11}
        assert not any(i.endswith("_11") for i in division.labels.ids["train"])
        assert division.prepared.read("test", [10], ["id"])["id"] == ["5_10"]


def test_folds_divide_the_labeled_tiles_of_all_splits_by_place(two_dates):
    prepared = store.PreparedSet(two_dates)
    labels, _ = read_labels(prepared, _config(folds=3))
    divisions = folds.divide(labels, prepared, _config(folds=3))
    assert [d.name for d in divisions] == ["fold0-of-3", "fold1-of-3", "fold2-of-3"]
    scored = np.concatenate([d.labels.ids["test"] for d in divisions])
    assert len(scored) == len(set(scored)) == 66

    def features(split):  # of a tile: its place and number
        return np.array(
            [
                [int(part) for part in i.split("_")]
                for i in prepared.read(split, np.arange(prepared.size(split)), ["id"])["id"]
            ]
        )

    for d in divisions:
        assert not set(d.labels.groups["train"]) & set(d.labels.groups["test"])
        select = d.select(features, prepared.contract)
        for split in ("train", "test"):
            assert [f"{a}_{b}" for a, b in select(split)] == d.labels.ids[split].tolist()
            assert (
                d.prepared.read(split, np.arange(d.prepared.size(split)), ["id"])["id"].tolist()
                == d.labels.ids[split].tolist()
            )
            change = select(split)[:, 1] % 3 == 0
            assert (d.labels.targets[split][:, 0] == change).all()
