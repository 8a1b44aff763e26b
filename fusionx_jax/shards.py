"""Reading records of one array_record shard by number, from any thread.

array_record's own reader copies a record four times and takes 2.6 times as long as this one. Shards that `data.prepare`
writes are uncompressed with one record a chunk, so each record's bytes stand in the file as they are, but for the
24-byte header at every multiple of 64 KiB: one scattered `preadv` puts them together. Other shards (compressed, or
grouped) are read by the library.

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
_PREFIX = 16  # bytes of a simple chunk before its record: compression type and two varints

_local = threading.local()  # a thread's room for one record
_junk = bytearray(_BLOCK_HEADER)  # where block headers are read to; never looked at


def _pieces(at: int, length: int) -> tuple[int, list[tuple[int, int]], int]:
    """Where `length` bytes of content that begin at file position `at` stand.

    Returns the first position to read, (offset into the content, size) of each run between block headers, and the
    position behind them.
    """
    inside = at % _BLOCK
    if inside < _BLOCK_HEADER:
        at += _BLOCK_HEADER - inside
        inside = _BLOCK_HEADER
    start, runs, done = at, [], 0
    while done < length:
        size = min(length - done, _BLOCK - inside)
        runs.append((done, size))
        done += size
        at += size
        if done < length:
            at += _BLOCK_HEADER
            inside = _BLOCK_HEADER
    return start, runs, at


def _read_into(descriptor: int, at: int, view: memoryview) -> None:
    """Fills `view` with content from file position `at`.

    Raises:
      ValueError: the file ends before.
    """
    start, runs, _ = _pieces(at, len(view))
    buffers, expected = [], 0
    for offset, size in runs:
        if buffers:
            buffers.append(_junk)
            expected += _BLOCK_HEADER
        buffers.append(view[offset : offset + size])
        expected += size
    if len(buffers) > 512:  # IOV_MAX is 1024: records beyond 16 MB are read in turns
        half = runs[len(runs) // 2][0]
        _read_into(descriptor, at, view[:half])
        _read_into(descriptor, _pieces(at, half)[2], view[half:])
        return
    if os.preadv(descriptor, buffers, start) != expected:
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
            os.close(self._descriptor)
            self._descriptor = -1
            raise

    def _chunk(self, at: int, file_size: int) -> int:
        """Notes the record of the chunk at a position; returns where the next chunk begins."""
        head = bytearray(_CHUNK_HEADER.size + _PREFIX)
        _read_into(self._descriptor, at, memoryview(head))
        _, data_size, _, kind, decoded = _CHUNK_HEADER.unpack_from(head)
        if kind != _SIMPLE | 1 << 8:
            raise ValueError("a chunk does not hold one record")
        prefix = head[_CHUNK_HEADER.size :]
        record, used = _record_start(prefix)
        if prefix[0] != 0 or record != decoded or used + record != data_size:
            raise ValueError("a chunk is compressed")
        self.places.append((_pieces(at, _CHUNK_HEADER.size + used)[2], record))
        end = _pieces(at, _CHUNK_HEADER.size + data_size)[2]
        if end > file_size:
            raise ValueError("the file ends inside a chunk")
        return end

    def _tail(self, at: int, count: int, file_size: int) -> None:
        """Makes sure that the file is whole: array_record ends with a footer of one entry more than there are records,
        padding to the next block, and a postscript in a block of its own."""
        for kind, entries in ((_SIMPLE, count + 1), (_PADDING, 0), (_SIMPLE, None)):
            head = bytearray(_CHUNK_HEADER.size)
            _read_into(self._descriptor, at, memoryview(head))
            _, data_size, _, found, _ = _CHUNK_HEADER.unpack(head)
            if found & 0xFF != kind or (entries is not None and found >> 8 != entries):
                raise ValueError("the file holds another number of records")
            at = _pieces(at, _CHUNK_HEADER.size + data_size)[2]
        if file_size != -(-at // _BLOCK) * _BLOCK:
            raise ValueError("the file ends before its last block does")

    def read(self, numbers: Sequence[int]):
        """Yields each record as a view that the next one overwrites."""
        for number in numbers:
            at, length = self.places[number]
            room = _local.__dict__.get("room")
            if room is None or len(room) < length:
                room = _local.room = bytearray(length)
            view = memoryview(room)[:length]
            _read_into(self._descriptor, at, view)
            yield view

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self):
        self.close()


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
                yield from self._reader().read([int(n) for n in numbers[start : start + _AT_ONCE]])
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
    at, values = 1, []
    for _ in range(2):
        value = shift = 0
        while True:
            if at >= len(prefix):
                raise ValueError("a chunk has another layout")
            byte = prefix[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        values.append(value)
    return values[1], at
