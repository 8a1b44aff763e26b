import numpy as np
import pytest

from fusionx_jax.evaluate.cells import Store, file_name
from fusionx_jax.evaluate.records import CellKey, LabelBudget, MetricKey, ModalitySet
from tests.evaluate.cells import cell, group


@pytest.mark.parametrize("folder", ["local", "memory://cells-test/store"])
def test_cells_come_back_as_they_were_kept(tmp_path, folder):
    store = Store(str(tmp_path / folder) if folder == "local" else folder)
    one = group(changes="masking=consistent/mask_ratio=0.9", modalities=ModalitySet(("s1",), ("s2",)))
    first = cell(one, [0.5, 0.4, np.nan], absent_classes=("a; b", "c"), confusion=[[1, 2], [3, 4]])
    shots = cell(one, [0.7, 0.6, 0.8], seed=3)._replace(key=CellKey(LabelBudget(shots=5), 3))
    store.add([first])
    store.add([shots])  # kept beside the first
    again = store.read(one)
    assert set(again) == {first.key, shots.key}
    for kept in (first, shots):
        back = again[kept.key]
        assert back._replace(values={}) == kept._replace(values={})
        assert np.array_equal(back.values[MetricKey("macro_map")], kept.values[MetricKey("macro_map")], equal_nan=True)
    assert {g: set(cells) for g, cells in store.read_all().items()} == {one: set(again)}
    assert store.read(group()) == {}


def test_cells_of_one_group_may_have_different_metrics(tmp_path):
    store, one = Store(str(tmp_path)), group()
    store.add([cell(one, [0.5, 0.4], seed=0), cell(one, [0.1, 0.2], seed=1, metric="micro_map")])
    metrics = {key.seed: set(c.values) for key, c in store.read(one).items()}
    assert metrics == {0: {MetricKey("macro_map")}, 1: {MetricKey("micro_map")}}


def test_cells_of_other_settings_and_damaged_files_count_as_missing(tmp_path):
    one, other = group(), group(evaluator="knn")
    Store(str(tmp_path), {"knn": "a", "linear_probe": "b"}).add([cell(one, [0.5, 0.4])])
    Store(str(tmp_path), {"knn": "a", "linear_probe": "b"}).add([cell(other, [0.5, 0.4])])
    changed = Store(str(tmp_path), {"knn": "x", "linear_probe": "b"})
    assert set(changed.read_all()) == {one}
    assert changed.read(other) == {}
    (tmp_path / file_name(one)).write_bytes(b"x")
    assert changed.read(one) == changed.read_all() == {}


def test_file_names_differ_wherever_groups_do_and_fit_file_systems():
    groups = [
        group(), group(evaluator="knn"), group(changes="a=1"), group("fusionx-a=1"), group("x/y"),
        group(modalities=ModalitySet(("s1",))), group(modalities=ModalitySet(("s1",), ("s2",))),
        group(changes="/".join(f"model.option_{i}={i}" for i in range(40))),
        group(changes="/".join(f"model.option_{i}={i}" for i in range(41))),
    ]  # fmt: skip
    names = [file_name(g) for g in groups]
    assert len(set(names)) == len(names)
    assert all(len(n.encode()) < 200 and "/" not in n for n in names)
