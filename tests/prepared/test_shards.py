import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx_jax.prepared import shards


def _write(path, records, options="group_size:1,uncompressed"):
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


def _records(sizes):
    rng = np.random.default_rng(0)
    return [rng.bytes(size) for size in sizes]


# Sizes around those at which chunks, their headers and the block headers of every 64 KiB meet.
NEAR_BLOCKS = st.integers(1, 4).flatmap(lambda n: st.integers(n * 65536 - 140, n * 65536 + 90))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 300), NEAR_BLOCKS), min_size=1, max_size=12))
def test_records_are_those_of_the_library(tmp_path_factory, sizes):
    records = _records(sizes)
    path = _write(tmp_path_factory.mktemp("shard") / "x", records)
    shard = shards.open_shard(path, len(records))
    assert isinstance(shard, shards.Shard)
    order = np.random.default_rng(1).permutation(len(records)).tolist()
    assert [bytes(r) for r in shard.read(order)] == [records[i] for i in order]
    library = shards.open_shard(path, len(records), verify=True)
    assert [bytes(r) for r in library.read(order)] == [records[i] for i in order]


def test_a_record_of_many_megabytes_is_read_in_turns(tmp_path):
    records = _records([100, 40_000_000, 7])
    shard = shards.Shard(_write(tmp_path / "x", records), 3)
    assert [bytes(r) for r in shard.read([1, 0, 2])] == [records[1], records[0], records[2]]


@pytest.mark.parametrize("options", ["group_size:1", "group_size:4,uncompressed", "group_size:1,zstd:3"])
def test_other_layouts_are_left_to_the_library(tmp_path, options):
    records = _records([1000, 2000, 3000, 4000, 5000])
    path = _write(tmp_path / "x", records, options)
    with pytest.raises(ValueError, match="chunk"):
        shards.Shard(path, 5)
    shard = shards.open_shard(path, 5)
    assert isinstance(shard, shards.LibraryShard)
    assert list(shard.read([4, 0, 2])) == [records[4], records[0], records[2]]


def test_wrong_counts_and_truncated_files_are_refused(tmp_path):
    records = _records([70_000] * 6)
    path = _write(tmp_path / "x", records)
    with pytest.raises(ValueError, match="holds 6 records, expected 7"):
        shards.open_shard(path, 7)
    with open(path, "rb") as f:
        whole = f.read()
    for size in (len(whole) - 70_000, 100_000, 50, 0):
        cut = tmp_path / f"cut{size}"
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="."):
            shards.open_shard(str(cut), 6)


def test_a_flipped_bit_is_found_where_checksums_are_asked_for(tmp_path):
    path = tmp_path / "x"
    _write(path, _records([5000] * 4))
    damaged = bytearray(path.read_bytes())
    damaged[12_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="."):
        list(shards.open_shard(str(path), 4, verify=True).read([0, 1, 2, 3]))


def test_threads_share_a_shard(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    records = _records([90_000 + i for i in range(50)])
    shard = shards.Shard(_write(tmp_path / "x", records), 50)

    def check(seed):
        order = np.random.default_rng(seed).permutation(50).tolist()
        return [bytes(r) for r in shard.read(order)] == [records[i] for i in order]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(40)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70_000), st.integers(1, 140_000)), min_size=1, max_size=4), st.integers(0, 90))
def test_parts_are_read_straight_into_their_buffers(tmp_path_factory, layout, behind):
    """`layout` lists gap and part in turn; every record has the same parts at the same byte offsets from its end."""
    tail = sum(gap + part for gap, part in layout) + behind
    records = _records([tail + extra for extra in (0, 13, 65_530)])
    shard = shards.Shard(_write(tmp_path_factory.mktemp("shard") / "x", records), 3)
    for number in (2, 0, 1):
        record, parts, from_end = records[number], [], tail
        for gap, part in layout:
            parts.append(shards.Part(from_end - gap, memoryview(bytearray(part))))
            from_end -= gap + part
        gaps = [bytes(g) for g in shard.scatter(number, parts)]
        together = b"".join(x for pair in zip(gaps, [*(bytes(v) for _, v in parts), b""]) for x in pair)
        assert together == record
