"""Random access to the records of one array_record shard, from any thread.

array_record's own reader copies a record four times and takes more than twice as long as this one. Shards that
`data.prepare` writes are uncompressed with one record per chunk, so the bytes of a record are contiguous in the file
except for the 24-byte block header at every multiple of 64 KiB: one scattered `preadv` reads them. Other shards
(compressed, or several records per chunk) are read by the library.

Layout: "Riegeli/records file format" (google/riegeli, doc/riegeli_records_file_format.md): block headers, chunk headers
of 40 bytes (header hash, data size, data hash, type and number of records, decoded size), simple chunks "r". Only the
library's reader verifies checksums; `fusionx inspect` uses it.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

# Sizes from the file format; see the module docstring.
_BLOCK = 1 << 16
_BLOCK_HEADER = 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")
_SIMPLE, _PADDING = ord("r"), ord("p")
_PREFIX = 16  # bytes of a simple chunk before its record: compression type and two varints
_AT_ONCE = 8  # records per call of the library: their memory stays in the CPU's cache, measured 2.3 x as fast as 64
_MAX_BUFFERS = 512  # of one preadv; POSIX systems allow at least 1024 (IOV_MAX)

_local = threading.local()  # one scratch buffer per thread
_discarded = bytearray(_BLOCK_HEADER)  # block headers are read into it


class RecordRange(NamedTuple):
    """A record in its shard: file offset of its first byte, and its length in bytes without block headers."""

    offset: int
    length: int


class Part(NamedTuple):
    """A part of a record, and the buffer that it is read into.

    The part begins `from_end` bytes before the end of the record and is as long as the buffer.
    """

    from_end: int
    buffer: memoryview


@runtime_checkable
class RecordReader(Protocol):
    """Records of a shard by number."""

    def read(self, numbers: Sequence[int]) -> Iterator[bytes | memoryview]:
        """Yields each record; a view is valid until the next record."""


def _scratch(length: int) -> bytearray:
    buffer = _local.__dict__.get("buffer")
    if buffer is None or len(buffer) < length:
        buffer = _local.buffer = bytearray(max(length, 1))
    return buffer


def _offset_after(offset: int, length: int) -> int:
    """File offset after `length` bytes of content that begin at `offset`, block headers skipped."""
    inside = offset % _BLOCK
    offset += max(0, _BLOCK_HEADER - inside)
    left = _BLOCK - max(inside, _BLOCK_HEADER)  # content left in this block
    if length <= left:
        return offset + length
    headers = -(-(length - left) // (_BLOCK - _BLOCK_HEADER))
    return offset + length + headers * _BLOCK_HEADER


def _read_into(descriptor: int, offset: int, views: Sequence[memoryview]) -> None:
    """Fills the views one after the other with content from file offset `offset`, block headers skipped.

    Raises:
      ValueError: the file ends before the last view is full.
    """
    offset += max(0, _BLOCK_HEADER - offset % _BLOCK)
    inside = offset % _BLOCK
    buffers: list[memoryview | bytearray] = []
    expected = 0
    for view in views:
        start, length = 0, len(view)
        while start < length:
            if inside == _BLOCK:
                buffers.append(_discarded)
                expected += _BLOCK_HEADER
                inside = _BLOCK_HEADER
            size = min(length - start, _BLOCK - inside)
            buffers.append(view[start : start + size])
            expected += size
            start += size
            inside += size
            if len(buffers) > _MAX_BUFFERS:
                _read_exactly(descriptor, offset, buffers, expected)
                offset += expected
                buffers, expected = [], 0
    if buffers:
        _read_exactly(descriptor, offset, buffers, expected)


def _read_exactly(descriptor: int, offset: int, buffers: Sequence[memoryview | bytearray], expected: int) -> None:
    if os.preadv(descriptor, buffers, offset) != expected:
        raise ValueError("the file ends inside a record")


class Shard:
    """A shard whose records are uncompressed, one per chunk."""

    def __init__(self, path: str, count: int):
        """Locates the `count` records by following the chunk headers.

        Raises:
          ValueError: the file has another layout, or another number of records.
          OSError: it cannot be opened.
        """
        self._descriptor = os.open(path, os.O_RDONLY)
        self.records: list[RecordRange] = []
        try:
            size = os.fstat(self._descriptor).st_size
            offset = _BLOCK_HEADER + _CHUNK_HEADER.size  # after the file's signature
            for _ in range(count):
                offset = self._add_chunk(offset, size)
            self._check_tail(offset, count, size)
        except BaseException:
            self.__del__()
            raise

    def _add_chunk(self, offset: int, file_size: int) -> int:
        """Adds the record of the chunk at `offset`; returns the offset of the next chunk."""
        head = bytearray(_CHUNK_HEADER.size + _PREFIX)
        _read_into(self._descriptor, offset, [memoryview(head)])
        _, data_size, _, kind, decoded = _CHUNK_HEADER.unpack_from(head)
        if kind != _SIMPLE | 1 << 8:
            raise ValueError("a chunk does not hold one record")
        prefix = head[_CHUNK_HEADER.size :]
        length, start = _record_start(prefix)
        if prefix[0] != 0 or length != decoded or start + length != data_size:
            raise ValueError("a chunk is compressed")
        self.records.append(RecordRange(_offset_after(offset, _CHUNK_HEADER.size + start), length))
        end = _offset_after(offset, _CHUNK_HEADER.size + data_size)
        if end > file_size:
            raise ValueError("the file ends inside a chunk")
        return end

    def _check_tail(self, offset: int, count: int, file_size: int) -> None:
        """Checks that the file is complete.

        array_record ends a file with a footer of one entry more than there are records, padding to the next block, and
        a postscript in a block of its own.
        """
        for kind, entries in ((_SIMPLE, count + 1), (_PADDING, 0), (_SIMPLE, None)):
            head = bytearray(_CHUNK_HEADER.size)
            _read_into(self._descriptor, offset, [memoryview(head)])
            _, data_size, _, stored, _ = _CHUNK_HEADER.unpack(head)
            if stored & 0xFF != kind or (entries is not None and stored >> 8 != entries):
                raise ValueError("the file holds another number of records")
            offset = _offset_after(offset, _CHUNK_HEADER.size + data_size)
        if file_size != -(-offset // _BLOCK) * _BLOCK:
            raise ValueError("the file ends before its last block does")

    def read(self, numbers: Sequence[int]) -> Iterator[memoryview]:
        """Yields each record as a view that the next one overwrites."""
        for number in numbers:
            record = self.records[number]
            view = memoryview(_scratch(record.length))[: record.length]
            _read_into(self._descriptor, record.offset, [view])
            yield view

    def scatter(self, number: int, parts: Sequence[Part]) -> list[memoryview]:
        """Reads parts of a record into their buffers.

        Args:
          parts: in the order of the record; they do not overlap.

        Returns:
          The bytes before, between and after the parts, valid until the next call in this thread.

        Raises:
          ValueError: the record is too short, or the file ends inside it.
        """
        record = self.records[number]
        scratch = memoryview(_scratch(record.length - sum(len(p.buffer) for p in parts)))
        views: list[memoryview] = []
        gaps: list[memoryview] = []
        offset, used = 0, 0  # in the record, in the scratch buffer
        for part in (*parts, Part(0, memoryview(b""))):
            gap = record.length - part.from_end - offset
            if gap < 0:
                raise ValueError("a record is shorter than the first")
            gaps.append(scratch[used : used + gap])
            used += gap
            views += [gaps[-1], part.buffer]
            offset += gap + len(part.buffer)
        _read_into(self._descriptor, record.offset, views)
        return gaps

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound: `os` may be gone at interpreter exit
        if self._descriptor >= 0:
            close(self._descriptor)
            self._descriptor = -1


@runtime_checkable
class _LibraryReader(Protocol):
    """What is used of array_record's reader, which has no type annotations."""

    def num_records(self) -> int: ...

    def read(self, indices: list[int]) -> Sequence[bytes]: ...


class LibraryShard:
    """Any other array_record file, read by its own library."""

    def __init__(self, path: str, count: int):
        """Opens the file.

        Raises:
          ValueError: it is damaged, or holds another number of records.
        """
        self._path = path
        self._local = threading.local()
        records = self._reader().num_records()
        if records != count:
            raise ValueError(f"it holds {records} records, expected {count}")

    def _reader(self) -> _LibraryReader:
        """This thread's reader."""
        from array_record.python import array_record_module

        if "reader" not in self._local.__dict__:
            options = "readahead_buffer_size:0,max_parallelism:0"
            try:
                self._local.reader = array_record_module.ArrayRecordReader(self._path, options)
            except RuntimeError as error:
                raise ValueError(str(error)) from error
        return self._local.reader

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yields each record.

        Raises:
          ValueError: one is damaged; the message gives its number in the shard, from 0.
        """
        for start in range(0, len(numbers), _AT_ONCE):
            some = list(numbers[start : start + _AT_ONCE])
            try:
                yield from self._reader().read(some)
            except RuntimeError as error:
                damaged = self.damaged(some)
                which = f"record {damaged[0]}" if damaged else "a record"
                raise ValueError(f"{which}: {error}") from error

    def damaged(self, numbers: Sequence[int]) -> list[int]:
        """Those of some records that cannot be read or have another checksum than the one they were written with."""
        out = []
        for number in numbers:
            try:
                self._reader().read([number])
            except RuntimeError:
                del self._local.reader  # a reader that failed once fails always
                out.append(number)
        return out


def open_shard(path: str, count: int, verify: bool = False) -> Shard | LibraryShard:
    """The fastest reader for the layout of the file; with `verify` the one that verifies every checksum.

    Raises:
      ValueError: the file is damaged, or holds another number of records.
      OSError: it cannot be opened.
    """
    if not verify:
        try:
            return Shard(path, count)
        except ValueError:  # another layout, or damage, which the library describes better
            pass
    return LibraryShard(path, count)


class _RecordStart(NamedTuple):
    """The length of a simple chunk's record, and the offset in the chunk at which it begins."""

    length: int
    start: int


def _record_start(prefix: bytes | bytearray) -> _RecordStart:
    """Reads what precedes the record of a simple chunk: compression type, size of the sizes, size of the record."""
    try:
        sizes = varint(prefix, 1)
        return _RecordStart(*varint(prefix, sizes.end))
    except IndexError as error:
        raise ValueError("a chunk has another layout") from error


class Varint(NamedTuple):
    """A decoded integer, and the offset after its last byte."""

    value: int
    end: int


def varint(content: bytes | bytearray | memoryview, offset: int) -> Varint:
    """Decodes a variable-length integer as protobuf and Riegeli write it.

    Raises:
      IndexError: the content ends inside the integer.
    """
    value = shift = 0
    while True:
        byte = content[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return Varint(value, offset)
        shift += 7
