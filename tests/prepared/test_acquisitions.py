import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fusionx_jax import contract
from fusionx_jax.errors import InputError
from fusionx_jax.prepared import resplit, sets, store
from fusionx_jax.prepared.acquisitions import Acquisitions
from tests import two_dates as source


@pytest.fixture
def prepared(two_dates):
    return store.PreparedSet(two_dates)


def test_all_dates_are_stored_and_read(prepared):
    made = source.TwoDates().example("train", 12)
    got = prepared.read("train", [12], ["s1", "s1@2", "s2", "s2@2", "acquired", "label_change"])
    for name, sensor in (
        ("s1", source.RADAR),
        ("s1@2", source.RADAR),
        ("s2", source.OPTICAL),
        ("s2@2", source.OPTICAL),
    ):
        assert (got[name][0] == sensor.encode(made[name])).all()
    assert json.loads(got["acquired"][0]) == made["acquired"]
    m = prepared.contract.modalities
    assert (m["s1"].acquisitions, m["s2"].acquisitions) == (2, 2)
    with pytest.raises(InputError, match="has no feature 's1@3'"):
        prepared.read("train", [0], ["s1@3"])


def test_tfds_reads_all_dates(two_dates, prepared):
    theirs = tfds.builder_from_directory(two_dates).as_data_source(split="test")[3]
    ours = prepared.read("test", [3], ["s1@2", "s2@2", "acquired"])
    assert (ours["s1@2"][0] == theirs["s1@2"]).all()
    assert (ours["s2@2"][0] == theirs["s2@2"]).all()
    assert ours["acquired"][0] == theirs["acquired"].decode()


def test_statistics_and_counts_are_of_all_dates_and_of_labeled_tiles(prepared):
    made = [source.TwoDates().example("train", i) for i in range(48)]
    values = np.concatenate([t[f].reshape(-1, 1) for t in made for f in ("s1", "s1@2") if f in t])
    m = prepared.contract.modalities["s1"]
    assert m.mean[0] == pytest.approx(values.mean(), abs=2e-3)
    assert m.std[0] == pytest.approx(values.std(), abs=2e-3)
    assert m.nodata_fraction == 0  # an absent date is no missing pixel
    assert prepared.contract.tasks["change"].counts == {"train": (16,), "val": (4,), "test": (4,)}
    assert prepared.contract.tasks["change_pixel"].counts["test"] == (11 * 256 - 4 * 64, 4 * 64)


def test_a_contract_of_one_date_is_written_as_before(simulated, two_dates):
    assert "acquisitions" not in contract.load(simulated).to_json()
    assert contract.load(two_dates).to_json().count("acquisitions") == 4


def test_the_same_date_is_drawn_for_all_modalities(prepared):
    drawn = Acquisitions(prepared, "same")
    assert drawn.size("train") == 2 * 48
    assert drawn.size("test") == 12
    got = drawn.read("train", [5, 53], ["s1", "s2"])
    stored = prepared.read("train", [5], ["s1", "s1@2", "s2", "s2@2"])
    for row, date in enumerate(("", "@2")):
        for name in ("s1", "s2"):
            assert (got[name][row] == stored[name + date][0]).all()


def test_independent_dates_are_all_combinations_each_once(prepared):
    drawn = Acquisitions(prepared, "independent")
    assert drawn.size("train") == 4 * 48
    got = drawn.read("train", 5 + 48 * np.arange(4), ["s1", "s2"])
    stored = prepared.read("train", [5], ["s1", "s1@2", "s2", "s2@2"])
    found = {
        tuple(next(d for d in ("", "@2") if (got[n][i] == stored[n + d][0]).all()) for n in ("s1", "s2"))
        for i in range(4)
    }
    assert len(found) == 4


def test_only_first_dates_are_read_where_the_config_says_so(prepared):
    drawn = Acquisitions(prepared, "first")
    got = drawn.read("train", np.arange(48), ["s1", "s2"])
    stored = prepared.read("train", np.arange(48), ["s1", "s2"])
    assert all((got[n] == stored[n]).all() for n in ("s1", "s2"))


def test_in_place_of_an_absent_date_the_next_one_is_read(prepared):
    last = source.TILES - 1
    assert (prepared.read("train", [last], ["s1@2"])["s1@2"] == 65535).all()
    got = Acquisitions(prepared, "same").read("train", [last, last + 48], ["s1", "s2"])
    stored = prepared.read("train", [last], ["s1", "s2", "s2@2"])
    assert (got["s1"] == stored["s1"][0]).all()
    assert (got["s2"][1] == stored["s2@2"][0]).all()


def test_the_date_is_a_function_of_seed_and_step(prepared):
    first, second = (Acquisitions(prepared, "same") for _ in range(2))
    assert (first.order("train", 3, 7, 32) == second.order("train", 3, 7, 32)).all()
    epoch = np.concatenate([first.order("train", 3, step, 32) for step in range(3)])
    assert sorted(epoch) == list(range(96))


def test_training_draws_dates_also_from_mixtures_and_band_groups(two_dates):
    groups = {"red": ("s2", "B04")}
    mixed = sets.open_sets(f"{two_dates},{two_dates}", (), groups, draw="same")
    assert mixed.size("train") == 4 * 48
    got = mixed.read("train", [5, 53], ["red", "s2"])
    assert (got["red"] == got["s2"][..., 2:3]).all()
    alone = sets.open_sets(two_dates, (), groups)
    later = alone.read("test", [0], ["red@2", "s2@2"])
    assert (later["red@2"] == later["s2@2"][..., 2:3]).all()


def test_a_draw_that_does_not_exist_is_refused(prepared):
    with pytest.raises(InputError, match="acquisitions is 'random'; it must be one of same, independent, first"):
        Acquisitions(prepared, "random")


def test_tiles_are_read_in_other_splits(prepared):
    every = np.concatenate([resplit.positions(prepared, s) for s in prepared.contract.splits])
    assert (every == np.arange(72)).all()
    tiles = np.array([71, 0, 50, 3, 60])
    again = resplit.Resplit(prepared, {"train": tiles, "test": np.array([1])})
    assert again.contract.splits == {"train": 5, "test": 1}
    got = again.read("train", [4, 0, 2, 1], ["id", "s2"])
    names = ["5_0", "5_11", "4_2", "0_0"]
    assert got["id"].tolist() == names
    for row, name in enumerate(names):
        place, number = map(int, name.split("_"))
        split = {4: "val", 5: "test"}.get(place, "train")
        index = number + (12 * place if split == "train" else 0)
        assert (got["s2"][row] == prepared.read(split, [index], ["s2"])["s2"][0]).all()
