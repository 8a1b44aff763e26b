"""Prepared sets whose contract, list of shards or records were changed."""

import contextlib
import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionx_jax import contract, preprocess
from fusionx_jax.prepared import records, store
from tests.fuzz.doors import handled, inputs, only_writes, values


def paths(raw, prefix=()):
    """The keys that lead to every value of a JSON document."""
    yield prefix
    children = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, child in children:
        yield from paths(child, (*prefix, key))


def change(data, raw):
    """Replaces, removes or adds a few values of a JSON document."""
    raw = copy.deepcopy(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from([p for p in paths(raw) if p] or [()]))
        if not where:
            return data.draw(values)
        parent = raw
        for key in where[:-1]:
            parent = parent[key]
        kind = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "remove":
            del parent[where[-1]]
        elif kind == "add" and isinstance(parent, dict):
            parent[data.draw(st.text(max_size=8))] = data.draw(values)
        else:
            parent[where[-1]] = data.draw(values)
    return raw


@pytest.fixture(scope="module")
def linked(simulated, tmp_path_factory):
    """A folder with links to the shards of a prepared set."""
    folder = tmp_path_factory.mktemp("linked") / "set"
    folder.mkdir()
    for path in Path(simulated).iterdir():
        if "array_record" in path.name:
            (folder / path.name).symlink_to(path)
    return folder


def read_all(folder):
    prepared = store.PreparedSet(folder)
    features = [*prepared.contract.modalities, *(t.feature for t in prepared.contract.tasks.values()), "id"]
    for split in prepared.contract.splits:
        prepared.read(split, [0], features)
    preprocess.make_normalizer(prepared.contract.modalities, prepared.contract.modalities)


def copy_metadata(simulated, linked):
    for name in ("contract.json", "dataset_info.json"):
        (linked / name).write_bytes((Path(simulated) / name).read_bytes())


def change_file(path, data):
    path.write_text(json.dumps(change(data, json.loads(path.read_text()))))


@inputs(250)
@given(data=st.data())
def test_a_changed_contract(simulated, linked, data):
    copy_metadata(simulated, linked)
    change_file(linked / "contract.json", data)
    with only_writes(linked.parent, linked):
        handled(lambda: read_all(linked))


@inputs(100)
@given(data=st.data())
def test_a_changed_list_of_shards(simulated, linked, data):
    copy_metadata(simulated, linked)
    change_file(linked / "dataset_info.json", data)
    handled(lambda: read_all(linked))


@inputs(60)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_a_contract_that_is_no_contract(linked, content):
    (linked / "contract.json").write_bytes(content)
    assert handled(lambda: contract.load(linked))


def damaged(data, content):
    """Flips, cuts, repeats or inserts a few bytes."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zero"]))
        if kind == "flip" and content:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(max_size=12))
        else:
            content[at : at + 16] = bytes(len(content[at : at + 16]))
    return bytes(content)


@inputs(300)
@given(data=st.data())
def test_a_damaged_record(simulated, data):
    reader = store.PreparedSet(simulated)._open_shard(*next(iter(store.PreparedSet(simulated).shard_sizes().items())))
    record = bytes(next(iter(reader.reader.read([0]))))
    with contextlib.suppress(IndexError, ValueError):  # in which the store names the shard
        records.example_fields(damaged(data, record))


@inputs(80)
@given(data=st.data())
def test_a_damaged_shard(simulated, linked, data):
    copy_metadata(simulated, linked)
    name = next(iter(store.PreparedSet(simulated).shard_sizes()))
    path = linked / name
    try:
        path.unlink()
        path.write_bytes(damaged(data, (Path(simulated) / name).read_bytes()))
        verify = data.draw(st.booleans())

        def read():
            prepared = store.PreparedSet(linked, verify=verify)
            for split in prepared.contract.splits:
                prepared.read(split, np.arange(min(8, prepared.size(split))), ["s1", "s2", "id"])

        handled(read)
    finally:
        path.unlink(missing_ok=True)
        os.symlink(Path(simulated) / name, path)
