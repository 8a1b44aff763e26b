import json
import shutil

import numpy as np

from data import writer
from data.simulated.builder import Simulated
from fusionx_jax import contract
from fusionx_jax.prepared import sets, store
from fusionx_jax.report import survey
from tests.data.command import run_prepare
from tests.helpers import assert_clear, run_cli, run_here


def test_the_page_shows_what_is_in_the_set(simulated, tmp_path):
    done = run_here("inspect", simulated, f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "140 train, 20 val, 40 test tiles" in done.stdout
    page = (tmp_path / "inspect.html").read_text()
    assert done.stdout.splitlines()[-1] == str(tmp_path / "inspect.html")
    assert page.count("data:image/png;base64,") == 4  # classes, tiles, bands, co-occurrence
    assert "simulated" in page
    assert (tmp_path / "figures/classes.pdf").stat().st_size > 1000


def test_counts_equal_numpy_over_all_tiles(simulated):
    found = survey.examine(simulated)
    prepared = store.PreparedSet(simulated)
    labels, pixels = [], []
    for split, count in prepared.contract.splits.items():
        batch = prepared.read(split, np.arange(count), ["label_multi", "s1"])
        labels.append(batch["label_multi"].astype(int))
        pixels.append(batch["s1"][:, ::4, ::4].reshape(-1, 2))
    labels, pixels = np.concatenate(labels), np.concatenate(pixels)
    assert (found.together["multi"] == labels.T @ labels).all()
    expected = np.histogram(pixels[:, 1], np.arange(0, 65537, 32))[0]
    assert (found.histograms["s1"][1] == expected).all()
    assert found.examined == {"train": 140, "val": 20, "test": 40}
    assert not [w for w in found.warnings if "task" not in w], found.warnings


class Leaky(Simulated):
    """The first test tiles are training tiles under other names, and all lie at few places."""

    def describe(self):
        import dataclasses

        return dataclasses.replace(super().describe(), has_location=True, has_group=True)

    def example(self, split, index):
        copied = split == "test" and index < 3
        out = super().example("train" if copied else split, index)
        if copied:
            out["id"] = f"copy-{index}"
        out["location"] = np.array([10 + index * 0.01, 50 + (0.5 if split == "val" else 0)])
        out["group"] = f"{split}-scene-{index % 4}" if split != "val" else "train-scene-0"
        return out


def test_leaks_between_splits_are_found(tmp_path):
    directory = writer.prepare(Leaky(60, 32, 0), str(tmp_path), num_workers=1)
    warnings = " ".join(survey.examine(directory).warnings)
    assert "leakage between train and test: the same pixels (3 tiles of test share it with train)" in warnings
    assert "leakage between train and test: the same place (12 tiles of test" in warnings
    assert (
        "leakage between train and val: one scene in several splits, which only splits by block intend (6 tiles of val"
        in warnings
    )
    assert "the same id" not in warnings


def test_a_contract_edited_by_hand_is_noticed(simulated, tmp_path):
    copy = shutil.copytree(simulated, tmp_path / "set")
    raw = json.loads((copy / "contract.json").read_text())
    raw["modalities"]["s2"]["mean"][3] += 800
    (copy / "contract.json").write_text(json.dumps(raw))
    warnings = survey.examine(str(copy)).warnings
    assert [w for w in warnings if "s2 B04: the contract has mean" in w]
    assert len([w for w in warnings if "the contract has" in w]) == 1


def test_a_few_tiles_of_a_large_set_suffice_for_a_look(simulated):
    found = survey.examine(simulated, most=20)
    assert found.examined == {"train": 14, "val": 2, "test": 4}


def test_bad_input_is_one_sentence(tmp_path, simulated):
    assert_clear(run_here("inspect", str(tmp_path / "none")), 2, "There is no folder")
    assert_clear(run_here("inspect", simulated, "--tiles=0"), 2, "--tiles is 0")


def test_real_scenes_have_places_and_pictures(samples, tmp_path):
    made = run_prepare(
        "paired_scenes", f"--raw={samples / 'terramesh_scenes'}",
        "--spec=data/paired_scenes/terramesh.yaml", "--tile_size=32", f"--out={tmp_path}",
    )  # fmt: skip
    found = survey.examine(made.stdout.splitlines()[-1])
    assert len(found.places) == sum(found.examined.values())
    assert np.isfinite(found.places).all()
    # The split is by block: scenes are shared, places are not.
    assert not [w for w in found.warnings if "same place" in w or "same pixels" in w]


def test_a_set_without_labels_or_places_has_a_page(tmp_path, simulated):
    import dataclasses

    from fusionx_jax.report import survey_page

    found = survey.examine(simulated)
    bare = dataclasses.replace(found, contract=dataclasses.replace(found.contract, tasks={}), together={})
    page = survey_page.write([bare, found], str(tmp_path))
    with open(page) as f:
        assert f.read().count("data:image") == 6


def test_class_names_of_any_script_are_printed_on_any_terminal(simulated, tmp_path):
    copy = shutil.copytree(simulated, tmp_path / "a,b")
    path = copy / "contract.json"
    first = contract.load(copy).tasks["multi"].classes[0]
    path.write_text(path.read_text().replace(f'"{first}"', '"\u6c34"'))
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = run_cli("fusionx_jax", "inspect", str(copy), "--tiles=4", f"--out={tmp_path / 'page'}", env=env)
    assert done.returncode == 0, done.stderr
    assert "\\u6c34" in done.stdout
    assert sets.open_sets(str(copy)).contract.splits  # a comma in a path separates no sets
