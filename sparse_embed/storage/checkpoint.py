"""Fold commits from the journal into the data files.

    1  (the caller) store.json says folding = n; no reader stands before n
    2  newest version of each row at or below commit n, read from the journal, never from memory,
       written in row order to the data files; fsync of each
    3  the store's arrays of commit n to a file of their own; fsync
    4  store.json says folded = n: temporary file, fsync, rename, directory fsync
    5  (the caller) segments without later commits are deleted

A crash before 4 leaves the journal to be folded again: every step can be repeated.  Nothing here
touches what a training thread changes, so a fold may run in the background; kernels are the serial
ones, which need no thread pool.
"""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.errors import CorruptStoreError
from sparse_embed.kernels.records import move_records_serial
from sparse_embed.kernels.rowio import read_serial
from sparse_embed.storage import files, manifest
from sparse_embed.storage.background import Background
from sparse_embed.storage.bulk import Bulk
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.frame import Meta, segment_name
from sparse_embed.storage.journal import Journal
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.manifest import ArraysFile, CommitState, Manifest
from sparse_embed.storage.rows import places_of, split_places
from sparse_embed.storage.segments import Frame, read_failed, read_indices

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]
_CHUNK_BYTES = 8 << 20  # shared by all segments: smaller ones would not read enough of each
_UNKNOWN = 1 << 63
_PATIENCE = 3  # times as long as the work since the last pause
_LOOK = 0.001  # seconds; pieces of work take 10 and more


class Courtesy:
    """Between pieces of a fold in the background: a commit on its way to disk goes first.

    Not for ever, or commits without a break in between would let the journal grow for ever.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._hurry = False
        self._since = time.perf_counter()

    def hurry(self) -> None:
        """Somebody waits for the fold."""
        self._hurry = True

    def pause(self) -> None:
        until = time.perf_counter() + _PATIENCE * (time.perf_counter() - self._since)
        while not (self._hurry or self._journal.idle) and time.perf_counter() < until:
            time.sleep(_LOOK)
        self._since = time.perf_counter()


@dataclass(frozen=True)
class Source:
    """What a fold reads: frames up to the commit, and descriptors of their segments."""

    frames: tuple[Frame, ...]
    fds: dict[int, int]
    courtesy: Courtesy | None = None

    @staticmethod
    def of(journal: Journal, frames: list[Frame]) -> Source:
        fds = {frame.segment: journal.segments[frame.segment].fd for frame in frames}
        return Source(tuple(frames), fds)

    def newest(self, name: str, num_embeddings: int = _UNKNOWN) -> tuple[Int64, Int64]:
        """(rows ascending, place of the newest version of each) of one table.

        num_embeddings: of the table, where all rows are known to be below it.
        """
        pieces = [piece for frame in self.frames for piece in frame.pieces]
        found = [(p, p.meta.tables[name]) for p in pieces if name in p.meta.tables]
        if num_embeddings <= sum(section.rows for _, section in found):
            every = np.full(num_embeddings, -1, np.int64)  # as large, and much faster than sorting
            for frame, section in found:
                at = read_indices(self.fds[frame.segment], frame, section)
                every[at] = places_of(frame, section)
            unique = np.flatnonzero(every >= 0)
            return unique, every[unique]
        rows, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for frame, section in reversed(found):
            rows.append(read_indices(self.fds[frame.segment], frame, section))
            places.append(places_of(frame, section))
        unique, first = np.unique(np.concatenate(rows), return_index=True)
        return unique, np.concatenate(places)[first]


def versions(source: Source, name: str, layout: Layout) -> Iterator[tuple[Int64, Floats]]:
    """(rows, their newest versions (n, lanes)) of one table, ascending, in pieces."""
    rows, places = source.newest(name, layout.num_embeddings)
    chunk = max(1, _CHUNK_BYTES // layout.record_bytes)
    with closing(Bulk()) as bulk:
        for begin in range(0, rows.size, chunk):
            part = rows[begin : begin + chunk]
            yield part, _records(bulk, source, places[begin : begin + chunk], layout)


def _records(bulk: Bulk, source: Source, places: Int64, layout: Layout) -> Floats:
    """The records at these places of the journal."""
    data = np.empty((places.size, layout.lanes), np.float32)
    to = np.arange(places.size, dtype=np.int64) * layout.lanes
    _collect(bulk, source, places, layout, slice(None), data.reshape(-1), to)
    return data


def _collect(
    bulk: Bulk,
    source: Source,
    places: Int64,
    layout: Layout,
    part: slice,
    words: Floats,
    to: Int64,
) -> None:
    """Record i of places[part] to words[to[i]:]."""
    for number, at, offsets in split_places(places[part]):
        fd, what = source.fds[number], segment_name(number)
        if bulk.read(fd, offsets, layout.record_bytes, words, to[at], what):
            continue
        some = np.empty((at.size, layout.lanes), np.float32)
        failed, code = read_serial()(fd, offsets, some.view(np.uint8))
        if failed >= 0:
            read_failed(int(code), what)
        begins = np.arange(at.size, dtype=np.int64) * layout.lanes
        move_records_serial()(some.reshape(-1), begins, words, to[at], layout.lanes)


def write_rows(source: Source, name: str, file: DataFile) -> Int64:
    """Write the newest versions of a table's rows to its data file; returns them.  No fsync."""
    layout = file.layout
    rows, places = source.newest(name, layout.num_embeddings)
    chunk = max(1, _CHUNK_BYTES // layout.record_bytes)
    with closing(Bulk()) as bulk:
        for begin in range(0, rows.size, chunk):
            part, its = rows[begin : begin + chunk], places[begin : begin + chunk]
            done = bulk.write(file, part, partial(_collect, bulk, source, its, layout))
            if done < part.size:  # scattered rows, or a file system that cannot: one by one
                data = _records(bulk, source, its[done:], layout)
                offsets = file.offsets(part[done:])
                code = files.CALLS.pwrite_records(file.fd, offsets, data.view(np.uint8))
                if code[0] >= 0:
                    files.raise_errno(int(code[1]), f"cannot write rows to {file.where}")
            if source.courtesy is not None:
                source.courtesy.pause()
    return rows


def state_of(meta: Meta) -> CommitState:
    """What a frame's meta fixes besides rows."""
    tables = {name: (section.step, section.lr) for name, section in meta.tables.items()}
    return CommitState(tables, meta.metadata)


def write_arrays(
    directory: files.Directory, commit: int, arrays: dict[str, NDArray[Any]]
) -> ArraysFile | None:
    """Save the store's arrays as a plain .npz, durably, under a name that only the caller's
    store.json will refer to.  Renamed into place: after a failed fold the same name may be in use.
    """
    if not arrays:
        return None
    data = io.BytesIO()
    members: dict[str, Any] = {_member(name): array for name, array in arrays.items()}
    try:
        np.savez(data, **members)
    except ValueError as error:  # Ctrl-C in there: closing the half archive fails, and hides it
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    encoded = data.getvalue()
    name = f"arrays-{commit:06d}.npz"
    directory.replace(name, encoded)
    return ArraysFile(name, len(encoded), hashlib.sha256(encoded).hexdigest())


def _member(name: str) -> str:
    return "=" + name  # np.savez reserves a parameter name of its own ("file")


def read_arrays(directory: files.Directory, said: ArraysFile | None) -> dict[str, NDArray[Any]]:
    """The arrays of a checkpoint; CorruptStoreError when the file is not what was written."""
    if said is None:
        return {}
    where = directory.describe(said.file)
    try:
        data = directory.read_small(said.file, said.bytes)
    except FileNotFoundError:
        raise CorruptStoreError(2, f"{where} is missing") from None
    if len(data) != said.bytes or hashlib.sha256(data).hexdigest() != said.sha256:
        raise CorruptStoreError(5, f"{where} fails its checksum; it was damaged or replaced")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise CorruptStoreError(5, f"{where} is compressed; ours never are")
            return {
                member.filename.removeprefix("=").removesuffix(".npy"): _parse(archive.read(member))
                for member in members
            }
    except (zipfile.BadZipFile, ValueError, TypeError, EOFError, RuntimeError) as error:
        raise CorruptStoreError(5, f"{where} is not one of our archives: {error}") from None


def _parse(data: bytes) -> NDArray[Any]:
    """A .npy of plain numbers or strings.  Unlike np.load, it believes no size before checking."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):  # numbers and strings never need another one
        raise ValueError(f".npy version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    body = data[stream.tell() :]
    if dtype.hasobject or size != len(body):
        raise ValueError(f"an array of {size} bytes in {len(body)}")
    array = np.ndarray(shape, dtype, body, order="F" if fortran else "C")
    return array.copy(order="C")


class Fold:
    """One checkpoint up to commit `upto`; `run` may be called in a thread of its own."""

    def __init__(
        self,
        directory: files.Directory,
        old: Manifest,
        source: Source,
        data_files: dict[str, DataFile],
        arrays: dict[str, NDArray[Any]],
    ) -> None:
        last = source.frames[-1]
        self.upto = last.commit
        state = state_of(last.meta)
        # A table made after that commit has its first step and lr in the old state only.
        state.tables = {**old.state.tables, **state.tables}
        self.new = replace(old, folded=self.upto, folding=self.upto, state=state, arrays=None)
        self.rows: dict[str, Int64] = {}
        self.error: BaseException | None = None
        self.finished = False
        self.processor_seconds = 0.0  # that it took, once it is done
        self._directory = directory
        self._source = source
        self._files = data_files
        self._arrays = arrays
        self._background = Background(self._work)

    def run(self) -> None:
        """Fold, here."""
        self._background.run()

    def start(self) -> None:
        """Fold, in a thread."""
        self._background.start()

    @property
    def record_bytes(self) -> int:
        """Of the records it has written so far."""
        rows = list(self.rows.items())
        return sum(part.size * self._files[name].layout.record_bytes for name, part in rows)

    def _work(self) -> None:
        begin = time.thread_time()
        try:
            for name, file in self._files.items():
                self.rows[name] = write_rows(self._source, name, file)
            for name, file in self._files.items():
                if self.rows[name].size:
                    files.sync(files.CALLS.fsync, file.fd, file.where)
            self.new.arrays = write_arrays(self._directory, self.upto, self._arrays)
            manifest.write(self._directory, self.new)
            self.finished = True
        except BaseException as error:
            self.error = error
        self.processor_seconds = time.thread_time() - begin

    @property
    def in_thread(self) -> bool:
        return self._background.in_thread

    @property
    def done(self) -> bool:
        return self._background.done

    def hurry(self) -> None:
        """Give way to commits no more."""
        if self._source.courtesy is not None:
            self._source.courtesy.hurry()

    def wait(self) -> None:
        self.hurry()
        self._background.wait()
