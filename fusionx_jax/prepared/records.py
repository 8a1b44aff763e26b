"""Positions of features in a serialized `tf.train.Example`."""

from typing import NamedTuple

from fusionx_jax.prepared.shards import varint

# Tags of the protobuf wire format, (field number << 3) | wire type, from tensorflow/core/example/*.proto.
_FEATURES = 0x0A  # Example.features
_ENTRY = 0x0A  # one entry of the map Features.feature
_KEY, _VALUE = 0x0A, 0x12  # of a map entry
_BYTES_LIST, _INT64_LIST = 0x0A, 0x1A  # of Feature
_CONTENT = 0x0A  # the value of a BytesList, or the packed values of an Int64List


class ByteRange(NamedTuple):
    """A feature's bytes inside its record: the offset of the first byte, and their number."""

    start: int
    length: int


class _Content(NamedTuple):
    """The content of a length-delimited field: offsets of its first byte and of the byte after its last."""

    start: int
    stop: int


def example_fields(record: bytes | memoryview) -> dict[str, ByteRange | int]:
    """Features of a serialized `tf.train.Example` by name: the range of a bytes feature, the value of an integer one.

    Parsing with protobuf copies every tile twice more; this follows the lengths of the wire format instead (protobuf
    encoding guide).

    Raises:
      IndexError: the record is truncated or is not an Example.
    """
    out: dict[str, ByteRange | int] = {}
    offset, end = _content(record, 0, _FEATURES)
    if end != len(record):
        raise IndexError("bytes follow the Example")
    while offset < end:
        start, next_entry = _content(record, offset, _ENTRY)
        key = _content(record, start, _KEY)
        value = _content(record, key.stop, _VALUE)
        name = str(record[key.start : key.stop], "utf-8")
        if record[value.start] == _BYTES_LIST:
            content = _content(record, _content(record, value.start, _BYTES_LIST).start, _CONTENT)
            out[name] = ByteRange(content.start, content.stop - content.start)
        elif record[value.start] == _INT64_LIST:
            out[name] = _integer(record, _content(record, value.start, _INT64_LIST).start)
        offset = next_entry
    return out


def _integer(record: bytes | memoryview, offset: int) -> int:
    """The first value of an Int64List, packed or not."""
    start = _content(record, offset, _CONTENT).start if record[offset] == _CONTENT else offset + 1
    return varint(record, start)[0]


def _content(record: bytes | memoryview, offset: int, tag: int) -> _Content:
    """The content of the length-delimited field that begins at `offset`."""
    if record[offset] != tag:
        raise IndexError(f"tag {record[offset]:#x} at byte {offset}, expected {tag:#x}")
    length, start = varint(record, offset + 1)
    if start + length > len(record):
        raise IndexError(f"a field of {length} bytes at byte {start} exceeds the record")
    return _Content(start, start + length)
