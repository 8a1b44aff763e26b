"""Reading records of one array_record shard by number, from any thread.

array_record's own reader copies a record four times and takes more than twice as long as this one. Shards that
`data.prepare` writes are uncompressed with one record a chunk, so each record's bytes stand in the file as they are,
but for the 24-byte header at every multiple of 64 KiB: one scattered `preadv` puts them together. Other shards
(compressed, or grouped) are read by the library.

Layout: "Riegeli/records file format" (google/riegeli, doc/riegeli_records_file_format.md): block headers, chunk headers
of 40 bytes (header hash, data size, data hash, type and number of records, decoded size), simple chunks "r". Checksums
are verified by the library's reader alone, which `fusionx inspect` uses.
"""

import os
import struct
import threading
from collections.abc import Sequence

_BLOCK = 1 << 16
_BLOCK_HEADER = 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")
_SIMPLE, _PADDING = ord("r"), ord("p")
_AT_ONCE = 8  # records read in one call: their memory stays in the cache and is used again, 2.3 x as fast as 64
_MOST_BUFFERS = 512  # of one preadv; systems allow 1024
_PREFIX = 16  # bytes of a simple chunk before its record: compression type and two varints

_local = threading.local()  # a thread's room for one record
_junk = bytearray(_BLOCK_HEADER)  # where block headers are read to; never looked at


def _room(length: int) -> bytearray:
    room = _local.__dict__.get("room")
    if room is None or len(room) < length:
        room = _local.room = bytearray(max(length, 1))
    return room


def _behind(at: int, length: int) -> int:
    """File position behind `length` bytes of content that begin at position `at`, block headers passed over."""
    inside = at % _BLOCK
    at += max(0, _BLOCK_HEADER - inside)
    room = _BLOCK - max(inside, _BLOCK_HEADER)  # content left in this block
    if length <= room:
        return at + length
    headers = -(-(length - room) // (_BLOCK - _BLOCK_HEADER))
    return at + length + headers * _BLOCK_HEADER


def _read_into(descriptor: int, at: int, views: Sequence[memoryview]) -> None:
    """Fills the views, one after the other, with content from file position `at`, passing over block headers.

    Raises:
      ValueError: the file ends before.
    """
    at += max(0, _BLOCK_HEADER - at % _BLOCK)
    inside = at % _BLOCK
    buffers, expected = [], 0
    for view in views:
        offset, length = 0, len(view)
        while offset < length:
            if inside == _BLOCK:
                buffers.append(_junk)
                expected += _BLOCK_HEADER
                inside = _BLOCK_HEADER
            size = min(length - offset, _BLOCK - inside)
            buffers.append(view[offset : offset + size])
            expected += size
            offset += size
            inside += size
            if len(buffers) > _MOST_BUFFERS:
                if os.preadv(descriptor, buffers, at) != expected:
                    raise ValueError("the file ends inside a record")
                at += expected
                buffers, expected = [], 0
    if buffers and os.preadv(descriptor, buffers, at) != expected:
        raise ValueError("the file ends inside a record")


class Shard:
    """One shard whose records are uncompressed, one a chunk."""

    def __init__(self, path: str, count: int):
        """Finds the `count` records by walking over the chunk headers.

        Raises:
          ValueError: the file has another layout, or fewer records.
          OSError: it cannot be opened.
        """
        self._descriptor = os.open(path, os.O_RDONLY)
        self.places: list[tuple[int, int]] = []  # file position and length of each record
        try:
            size = os.fstat(self._descriptor).st_size
            at = _BLOCK_HEADER + _CHUNK_HEADER.size  # behind the file's signature
            for _ in range(count):
                at = self._chunk(at, size)
            self._tail(at, count, size)
        except BaseException:
            self.__del__()
            raise

    def _chunk(self, at: int, file_size: int) -> int:
        """Notes the record of the chunk at a position; returns where the next chunk begins."""
        head = bytearray(_CHUNK_HEADER.size + _PREFIX)
        _read_into(self._descriptor, at, [memoryview(head)])
        _, data_size, _, kind, decoded = _CHUNK_HEADER.unpack_from(head)
        if kind != _SIMPLE | 1 << 8:
            raise ValueError("a chunk does not hold one record")
        prefix = head[_CHUNK_HEADER.size :]
        record, used = _record_start(prefix)
        if prefix[0] != 0 or record != decoded or used + record != data_size:
            raise ValueError("a chunk is compressed")
        self.places.append((_behind(at, _CHUNK_HEADER.size + used), record))
        end = _behind(at, _CHUNK_HEADER.size + data_size)
        if end > file_size:
            raise ValueError("the file ends inside a chunk")
        return end

    def _tail(self, at: int, count: int, file_size: int) -> None:
        """Makes sure that the file is whole: array_record ends with a footer of one entry more than there are records,
        padding to the next block, and a postscript in a block of its own."""
        for kind, entries in ((_SIMPLE, count + 1), (_PADDING, 0), (_SIMPLE, None)):
            head = bytearray(_CHUNK_HEADER.size)
            _read_into(self._descriptor, at, [memoryview(head)])
            _, data_size, _, found, _ = _CHUNK_HEADER.unpack(head)
            if found & 0xFF != kind or (entries is not None and found >> 8 != entries):
                raise ValueError("the file holds another number of records")
            at = _behind(at, _CHUNK_HEADER.size + data_size)
        if file_size != -(-at // _BLOCK) * _BLOCK:
            raise ValueError("the file ends before its last block does")

    def read(self, numbers: Sequence[int]):
        """Yields each record as a view that the next one overwrites."""
        for number in numbers:
            at, length = self.places[number]
            view = memoryview(_room(length))[:length]
            _read_into(self._descriptor, at, [view])
            yield view

    def scatter(self, number: int, parts: Sequence[tuple[int, memoryview]]) -> list[memoryview]:
        """Reads a record straight into the rooms of `parts`, which are told by their distance from the record's end and
        stand in its order; returns what stands before, between and behind them, until the next call in this thread.

        Raises:
          ValueError: the record is too short, or the file ends before.
        """
        at, length = self.places[number]
        views, gaps, done, used = [], [], 0, 0
        room = memoryview(_room(length - sum(len(v) for _, v in parts)))
        for distance, view in (*parts, (0, None)):
            gap = length - distance - done
            if gap < 0:
                raise ValueError("a record is shorter than the first")
            gaps.append(room[used : used + gap])
            views.append(gaps[-1])
            used += gap
            if view is not None:
                views.append(view)
                done = length - distance + len(view)
        _read_into(self._descriptor, at, views)
        return gaps

    def __del__(self, close=os.close):  # its own name for it: modules may be gone when the interpreter ends
        if self._descriptor >= 0:
            close(self._descriptor)
            self._descriptor = -1


class LibraryShard:
    """Any other array_record file, read by its own library."""

    def __init__(self, path: str, count: int):
        """Opens the file.

        Raises:
          ValueError: it is damaged, or holds another number of records.
        """
        self._path = path
        self._local = threading.local()
        found = self._reader().num_records()
        if found != count:
            raise ValueError(f"it holds {found} records, expected {count}")

    def _reader(self):
        from array_record.python import array_record_module

        if "reader" not in self._local.__dict__:
            options = "readahead_buffer_size:0,max_parallelism:0"
            try:
                self._local.reader = array_record_module.ArrayRecordReader(self._path, options)
            except RuntimeError as error:
                raise ValueError(str(error)) from error
        return self._local.reader

    def read(self, numbers: Sequence[int]):
        """Yields each record."""
        for start in range(0, len(numbers), _AT_ONCE):
            try:
                yield from self._reader().read(list(numbers[start : start + _AT_ONCE]))
            except RuntimeError as error:
                raise ValueError(str(error)) from error


def open_shard(path: str, count: int, verify: bool = False) -> Shard | LibraryShard:
    """The quickest reader that understands the file; `verify` takes the one that checks every checksum.

    Raises:
      ValueError: the file is damaged, or holds another number of records.
      OSError: it cannot be opened.
    """
    if not verify:
        try:
            return Shard(path, count)
        except ValueError:  # another layout, or damage, which the library names better
            pass
    return LibraryShard(path, count)


def _record_start(prefix: bytes | bytearray) -> tuple[int, int]:
    """Length of the one record of a simple chunk, and where it begins: after compression type, size of sizes, size."""
    try:
        _, at = varint(prefix, 1)
        return varint(prefix, at)
    except IndexError as error:
        raise ValueError("a chunk has another layout") from error


def varint(content: bytes | bytearray | memoryview, at: int) -> tuple[int, int]:
    """A variable-length integer as protobuf and Riegeli write it, and the position behind it.

    Raises:
      IndexError: the content ends before.
    """
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
