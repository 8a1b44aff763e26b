"""Field positions in a serialized `tf.train.Example`."""

from fusionx_jax.prepared.shards import varint


def example_fields(record: bytes | memoryview) -> dict[str, tuple[int, int] | int]:
    """Where the features of a serialized `tf.train.Example` stand: (start, length) of bytes, or an integer's value.

    Parsing with protobuf copies every tile twice more; this follows the lengths of the wire format instead (protobuf
    encoding guide; tensorflow/core/example/*.proto).

    Raises:
      IndexError: the record is cut short or holds something else.
    """
    out: dict[str, tuple[int, int] | int] = {}
    end, at = _field(record, 0, 0x0A)  # Example.features
    if end != len(record):
        raise IndexError
    while at < end:
        after, at = _field(record, at, 0x0A)  # one entry of Features.feature
        key_end, at = _field(record, at, 0x0A)
        key = str(record[at:key_end], "utf-8")
        _, at = _field(record, key_end, 0x12)  # Feature
        if record[at] == 0x0A:  # bytes_list
            _, at = _field(record, at, 0x0A)
            stop, at = _field(record, at, 0x0A)
            out[key] = (at, stop - at)
        elif record[at] == 0x1A:  # int64_list, packed or not
            _, at = _field(record, at, 0x1A)
            if record[at] == 0x0A:
                _, at = _field(record, at, 0x0A)
            else:
                at += 1
            out[key] = varint(record, at)[0]
        at = after
    return out


def _field(record: bytes | memoryview, at: int, tag: int) -> tuple[int, int]:
    """End and start of the content of a length-delimited field that begins at `at`."""
    if record[at] != tag:
        raise IndexError
    length, at = varint(record, at + 1)
    if at + length > len(record):
        raise IndexError
    return at + length, at
