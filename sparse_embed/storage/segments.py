"""The segments of a journal, and how frames are read back.

- Segments are read in order of their numbers.  Frame numbers rise by one, digests chain.
- A later segment whose first commit is n cuts the earlier one before n (a writer that opened an
  earlier commit, or met a failed sync, goes on in a new segment).
- Parts count with the frame behind them.  A part is written when the commit before it is durable.
- Reading stops at the first frame that is not whole.  That is the end of the journal when nothing
  later was ever committed; a later valid frame proves that the bytes in between were durable once,
  so then it is damage, and an error that names file and offset.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.errors import CorruptStoreError, UnsupportedVersionError
from sparse_embed.storage import files
from sparse_embed.storage.frame import (
    BLOCK,
    HEADER,
    TRAILER,
    FrameDigest,
    FrameHeader,
    Meta,
    SegmentHeader,
    TableSection,
    align,
    data_start,
    segment_name,
    segment_number,
    trailer,
)
from sparse_embed.storage.frame_writer import CHUNK, Staging


@dataclass(frozen=True)
class Frame:
    """A commit found in the journal.  `at` is the file offset of its header."""

    segment: int
    at: int
    commit: int
    frame_bytes: int
    data_at: int
    digest: int
    meta: Meta
    parts: tuple[Frame, ...] = ()  # rows of this commit that were written ahead of it

    @property
    def pieces(self) -> tuple[Frame, ...]:
        """All that holds rows of this commit, in order: the last version of a row counts."""
        return (*self.parts, self)

    @property
    def end(self) -> int:
        return align(self.at + self.frame_bytes, BLOCK)

    @property
    def nbytes(self) -> int:
        """Of the commit, parts included."""
        return sum(piece.frame_bytes for piece in self.pieces)


@dataclass
class Segment:
    header: SegmentHeader
    fd: int
    end: int  # first byte behind the last valid frame, a multiple of BLOCK
    size: int
    room: int = 0  # of the spare file that it was made of


class Segments:
    """The segments of one store; journal.py adds to them."""

    def __init__(self, directory: files.Directory, uuid: bytes) -> None:
        self._dir = directory
        self._uuid = uuid
        self._staging = Staging()
        self.segments: dict[int, Segment] = {}
        self.last_commit = 0
        self.chain = 0
        self._number = 0  # the highest segment number ever seen
        self._later = False  # it holds later commits, which the next one will replace
        self.notes: list[str] = []
        self.folded_frames: list[Frame] = []  # see `scan`

    def scan(
        self, folded: int, upto: int | None = None, *, folded_too: bool = False
    ) -> list[Frame]:
        """Open the segments and return the valid frames after commit `folded`, at most to `upto`.

        With `folded_too` those that are folded and not yet deleted are checked as well; they are in
        `folded_frames` then.

        Raises CorruptStoreError for damage before the journal's end, FileNotFoundError when a
        segment vanished meanwhile (a reader then starts again).
        """
        self.last_commit = folded
        self.folded_frames = []
        self._later = upto is not None
        headers = self._open_segments()
        known = self._set_aside_empty(headers, folded)
        frames: list[Frame] = []
        expected: int | None = None
        for number, header in headers.items():
            if upto is not None and expected is not None and expected > upto:
                break
            segment = self.segments[number]
            # The first commit of any later segment cuts this one.
            following = min(
                (h.first_commit for n, h in headers.items() if n > number), default=None
            )
            if following is not None and following <= max(folded + 1, header.first_commit):
                continue  # folded before a crash came in the way of its deletion, or superseded
            commit = header.first_commit
            if commit > folded + 1 if expected is None else commit != expected:
                raise CorruptStoreError(
                    errno.EIO,
                    f"{self._where(number)} begins with commit {commit}, but commit "
                    f"{folded + 1 + len(frames)} is missing: a journal segment was lost",
                )
            if frames and header.chain != frames[-1].digest:
                raise CorruptStoreError(
                    errno.EIO,
                    f"{self._where(number)} does not continue the segment before it (offset 56)",
                )
            self.chain = header.chain
            while (following is None or commit < following) and (upto is None or commit <= upto):
                frame = known
                if known is None or (known.segment, known.commit) != (number, commit):
                    wanted = folded_too or commit > folded
                    frame = self._read_commit(segment, commit, self.chain, verify=wanted)
                if frame is None:
                    if following is not None:
                        raise CorruptStoreError(
                            errno.EIO,
                            f"{self._where(number)} is damaged at offset {segment.end}: commit "
                            f"{commit} cannot be read, though later commits follow",
                        )
                    self._check_tail(segment, commit)
                    break
                segment.end = frame.end
                self.chain = frame.digest
                if commit > folded:
                    frames.append(frame)
                elif folded_too:
                    self.folded_frames.append(frame)
                commit += 1
            expected = commit
        if frames:
            self.last_commit = frames[-1].commit
        return frames

    def _set_aside_empty(self, headers: dict[int, SegmentHeader], folded: int) -> Frame | None:
        """Leave out newest segments without a whole frame: the commit that would have replaced
        what older segments hold never came to be.  Returns the first frame of the newest other."""
        for number in sorted(headers, reverse=True):
            segment = self.segments[number]
            first = segment.header.first_commit
            frame = self._read_commit(segment, first, segment.header.chain, verify=first > folded)
            if frame is not None:
                return frame
            self._check_tail(segment, first)
            os.close(segment.fd)
            del headers[number], self.segments[number]
        return None

    def _where(self, number: int) -> str:
        return self._dir.describe(segment_name(number))

    def _open_segments(self) -> dict[int, SegmentHeader]:
        headers: dict[int, SegmentHeader] = {}
        found = [n for n in map(segment_number, self._dir.names()) if n is not None]
        for number in sorted(found):
            fd = self._dir.open_regular(segment_name(number), writable=False)
            self._number = max(self._number, number)
            size = os.fstat(fd).st_size
            header = SegmentHeader.decode(os.pread(fd, BLOCK, 0))
            if isinstance(header, int):
                os.close(fd)
                raise UnsupportedVersionError(
                    errno.ENOTSUP, f"{self._where(number)} has journal version {header}"
                )
            if header is None or header.uuid != self._uuid or header.number != number:
                torn = header is None and not any(_frame_headers(fd, BLOCK, size))
                os.close(fd)
                if torn:
                    self.notes.append(f"{segment_name(number)}: unfinished, ignored")
                    continue
                raise CorruptStoreError(
                    errno.EIO,
                    f"{self._where(number)} has a damaged or foreign header (offset 0)",
                )
            headers[number] = header
            self.segments[number] = Segment(header, fd, BLOCK, size)
        return headers

    def _read_commit(self, segment: Segment, commit: int, chain: int, verify: bool) -> Frame | None:
        """The frame behind the segment's end so far with the parts before it, or None when they are
        not all there, whole and valid."""
        at, parts = segment.end, list[Frame]()
        while True:
            header = FrameHeader.decode(os.pread(segment.fd, HEADER, at))
            if header is None or header.commit != commit or header.chain != chain:
                return None
            frame = self._read_frame(segment, at, header, verify)
            if frame is None or not header.part:
                return frame and replace(frame, parts=tuple(parts))
            if not segment.header.parts:
                return None
            parts.append(frame)
            at, chain = frame.end, frame.digest

    def _read_frame(
        self, segment: Segment, at: int, header: FrameHeader, verify: bool
    ) -> Frame | None:
        """A frame, or a part, by its header, or None when it is not whole or not valid."""
        fd, commit = segment.fd, header.commit
        if header.salt != segment.header.salt or at + header.frame_bytes > segment.size:
            return None
        tail_at = at + header.frame_bytes - TRAILER
        tail = os.pread(fd, TRAILER, tail_at)
        if len(tail) != TRAILER:
            return None
        digest = int.from_bytes(tail[16:24], "little")
        if tail != trailer(commit, digest):
            return None
        if verify and self._digest(fd, at, tail_at, header.salt) != digest:
            return None
        encoded = os.pread(fd, header.meta_bytes, at + HEADER)
        if len(encoded) != header.meta_bytes:  # a writer has given it up meanwhile
            return None
        try:
            meta = Meta.decode(encoded, header.frame_bytes)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            if verify:
                return None
            raise CorruptStoreError(
                errno.EIO, f"{self._where(segment.header.number)} is damaged at offset {at}"
            ) from None
        data_at = at + data_start(header.meta_bytes)
        return Frame(segment.header.number, at, commit, header.frame_bytes, data_at, digest, meta)

    def _digest(self, fd: int, begin: int, end: int, salt: int) -> int:
        digest = FrameDigest(salt)
        buffer = self._staging.reserve(min(end - begin, CHUNK))
        while begin < end:
            n = min(end - begin, buffer.size)
            view = buffer[:n].data
            got = os.preadv(fd, [view], begin)
            if got != n:
                return -1
            digest.update(buffer[:n])
            begin += n
        return digest.value()

    def _check_tail(self, segment: Segment, commit: int) -> None:
        """Nothing behind an unreadable frame may have been committed later."""
        at, name = segment.end, segment_name(segment.header.number)
        if at >= segment.size:
            if at > segment.size:
                self.notes.append(f"{name}: ends inside the padding behind commit {commit - 1}")
            return
        for probe, header in _frame_headers(segment.fd, at + BLOCK, segment.size):
            if header.salt == segment.header.salt and header.commit > commit:
                raise CorruptStoreError(
                    errno.EIO,
                    f"{self._where(segment.header.number)} is damaged at offset {at}: commit "
                    f"{commit} cannot be read, though commit {header.commit} follows at {probe}",
                )
        first = FrameHeader.decode(os.pread(segment.fd, HEADER, at))
        own = first is not None and first.salt == segment.header.salt
        if own or not segment.header.reused:  # else: what an older segment left there
            self.notes.append(f"{name}: an unfinished commit {commit} at offset {at} was ignored")

    def indices(self, frame: Frame, section: TableSection) -> NDArray[np.int64]:
        """The row numbers of a table's section."""
        return read_indices(self.segments[frame.segment].fd, frame, section)

    def arrays(self, frame: Frame) -> dict[str, NDArray[Any]]:
        """The store's arrays as this commit has them."""
        found = {}
        for section in frame.meta.arrays:
            data = files.read_exact(
                self.segments[frame.segment].fd,
                section.nbytes,
                frame.data_at + section.at,
                self._where(frame.segment),
            )
            try:
                array = np.ndarray(section.shape, section.dtype, data)
            except (ValueError, TypeError) as error:  # extents beyond what NumPy can address
                where = self._where(frame.segment)
                raise CorruptStoreError(
                    errno.EIO, f"{where}: array {section.name!r} of commit {frame.commit}: {error}"
                ) from None
            found[section.name] = array.copy()
        return found

    def walk(self) -> Iterator[Segment]:
        yield from (self.segments[number] for number in sorted(self.segments))


def _frame_headers(fd: int, begin: int, end: int) -> Iterator[tuple[int, FrameHeader]]:
    """Every intact frame header at a block boundary of [begin, end)."""
    for low, high in files.extents(fd, begin, end):
        for at in range(max(begin, low // BLOCK * BLOCK), high, BLOCK):
            header = FrameHeader.decode(os.pread(fd, HEADER, at))
            if header is not None:
                yield at, header


def read_indices(fd: int, frame: Frame, section: TableSection) -> NDArray[np.int64]:
    """The row numbers of a table's section; `fd` is of the frame's segment."""
    at = frame.data_at + section.indices_at
    data = files.read_exact(fd, 8 * section.rows, at, segment_name(frame.segment))
    return np.frombuffer(data, "<i8").astype(np.int64, copy=False)


def read_failed(code: int, what: str) -> None:
    """Raise for a record read that failed."""
    if code:
        files.raise_errno(code, f"cannot read {what}")
    raise CorruptStoreError(errno.EIO, f"{what} ends early; it was truncated by someone else")
