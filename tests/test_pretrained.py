"""Weights that come with the package."""

import os
import re
import shutil

import jax
import numpy as np
import pytest

import fusionx_jax
from fusionx_jax import checkpoint, config, pretrained
from fusionx_jax.errors import InputError
from fusionx_jax.models import build
from fusionx_jax.training.experiment import run_contract
from tests.helpers import ROOT

NAMES = pretrained.names()
LARGEST = 10_000_000  # bytes


def contents(name):
    return [p for p in (ROOT / "fusionx_jax/pretrained" / name).rglob("*") if p.is_file()]


def test_the_weights_are_those_of_the_documentation():
    assert NAMES == ["oscd-mini"]
    assert 'load("oscd-mini")' in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_and_carry_card_license_and_checksums_but_no_path(name):
    assert sum(p.stat().st_size for p in contents(name)) <= LARGEST
    card = (ROOT / "fusionx_jax/pretrained" / name / "README.md").read_text()
    for words in ("License: ", "Contains modified Copernicus Sentinel data", "fusionx pretrain --config="):
        assert words in card
    assert "checksums.json" in {p.name for p in contents(name)}
    for path in contents(name):
        assert not re.search(rb"/(tmp|home|root|work|Users)/", path.read_bytes()), path


@pytest.mark.parametrize("name", NAMES)
def test_weights_encode_both_sensors_or_one(name):
    encoder = fusionx_jax.load(name)
    rng = np.random.default_rng(0)
    images = {
        m: np.array(c.mean) + 0.3 * np.array(c.std) * rng.normal(size=(3, 20, 20, len(c.bands)))
        for m, c in encoder.modalities.items()
    }
    both = encoder.encode(images)
    assert np.isfinite(both.pooled).all()
    assert np.abs(both.pooled[0] - both.pooled[1]).max() > 1e-3
    alone = encoder.encode({"s2": images["s2"]})
    assert both.tokens["s2"].shape == alone.tokens["s2"].shape == (3, 5, 5, 128)
    assert np.abs(both.tokens["s2"] - alone.tokens["s2"]).max() > 1e-3  # the other sensor is attended to


@pytest.mark.parametrize("name", NAMES)
def test_weights_start_a_new_run(name):
    saved = checkpoint.find(name)
    c = config.from_json(saved.config)
    c.init_from, c.dataset = name, "the same data"
    contract, found = run_contract(c, saved.contract)
    assert found.path == saved.path
    model = build.make_model(c, contract.modalities)
    shapes = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    whole = checkpoint.load_params(found, shapes)
    assert set(whole) == {"encoder", "decoder", "project_s1", "project_s2"}
    fresh = build.init_params(model, jax.random.key(0))
    embeddings = [params["encoder"]["embed_s1"] for params in (whole, fresh)]
    gaps = jax.tree.map(lambda a, b: float(abs(a - b).max()), *embeddings)
    assert max(jax.tree.leaves(gaps)) > 0.01


def test_a_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrained.locate("oscd-mini") != "oscd-mini"
    os.mkdir("oscd-mini")
    assert pretrained.locate("oscd-mini") == "oscd-mini"
    assert pretrained.locate("runs/demo") == "runs/demo"


def test_changed_weights_are_refused(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pretrained.locate("oscd-mini"), copy)
    sums = copy / "checksums.json"
    sums.write_text(re.sub(r": (\d)", lambda m: f": {(int(m[1]) + 1) % 10 or 1}", sums.read_text()))
    with pytest.raises(InputError, match="the checksum of"):
        fusionx_jax.load(str(copy))


def test_an_unknown_name_gives_those_that_there_are():
    with pytest.raises(InputError, match=r"There is no folder .*oscd-maxi.*\(oscd-mini\)"):
        fusionx_jax.load("oscd-maxi")
