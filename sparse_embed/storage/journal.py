"""The redo journal: append a commit frame, read frames back.

Rules of reading
- Segments are read in order of their numbers.  Frame numbers rise by one, digests chain.
- A later segment whose first commit is n cuts the earlier one before n (a writer that opened an
  earlier commit, or met a failed sync, goes on in a new segment).
- Reading stops at the first frame that is not whole.  That is the end of the journal when nothing
  later was ever committed; a later valid frame proves that the bytes in between were durable once,
  so then it is damage, and an error that names file and offset.

Rules of writing
- One frame, one fdatasync; a new segment's directory entry is synced before the first frame counts.
- Space is allocated before a frame is written: a full disk leaves the journal as it was.
- A new segment takes the file of a folded one, if there is a spare (spares.py tells the order).
- After a failed write or sync nothing more is appended to that file: its pages may be marked clean
  without being on disk.  The next frame begins a new segment.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.errors import CorruptStoreError, StoreError, UnsupportedVersionError
from sparse_embed.storage import files
from sparse_embed.storage.background import Background
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
from sparse_embed.storage.frame_writer import CHUNK, WRITERS, FrameWriter, Staging
from sparse_embed.storage.spares import WORTH, Spares

SEGMENT_BYTES = 256 << 20  # a segment takes no further frame beyond this size


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


@dataclass
class Segment:
    header: SegmentHeader
    fd: int
    end: int  # first byte behind the last valid frame, a multiple of BLOCK
    size: int
    room: int = 0  # of the spare file that it was made of


class PendingCommit:
    """A frame whose last part a thread is writing."""

    def __init__(self, frame: Frame, finish: Callable[[], int]) -> None:
        self.frame = frame
        self.error: BaseException | None = StoreError(
            errno.EINTR, f"commit {frame.commit} was interrupted before it was written"
        )
        self.digest = 0
        self._finish = finish
        self._background = Background("sparse_embed-commit", self._work)

    def _work(self) -> None:
        try:
            self.digest = self._finish()
            self.error = None
        except BaseException as error:
            self.error = error

    def start(self) -> None:
        self._background.start()

    def run_here(self) -> None:
        self._background.run()

    @property
    def done(self) -> bool:
        return self._background.done

    def wait(self) -> None:
        self._background.wait()


class Journal:
    """The segments of one store."""

    def __init__(self, directory: files.Directory, uuid: bytes, writable: bool) -> None:
        self._dir = directory
        self._uuid = uuid
        self._writable = writable
        self._staging = Staging()
        self._append_fd = -1  # of the newest segment, O_DIRECT where the file system has it
        self._sealed = True  # the next frame begins a new segment
        self.segments: dict[int, Segment] = {}
        self.last_commit = 0
        self.chain = 0
        self._number = 0  # the highest segment number ever seen
        self._later = False  # it holds later commits, which the next one will replace
        self._pending: PendingCommit | None = None  # launched, and neither settled nor abandoned
        self._writer: FrameWriter | None = None  # of the newest frame
        self.notes: list[str] = []
        self.folded_frames: list[Frame] = []  # see `scan`
        self.idle = True  # no frame is being written
        self._spares = Spares(directory)
        self.may_reuse: Callable[[], bool] = lambda: False  # does no reader need folded segments?

    # ---- reading --------------------------------------------------------------------------------

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
                    frame = self._read_frame(segment, commit, self.chain, verify=wanted)
                if frame is None:
                    if following is not None:
                        raise CorruptStoreError(
                            errno.EIO,
                            f"{self._where(number)} is damaged at offset {segment.end}: commit "
                            f"{commit} cannot be read, though later commits follow",
                        )
                    self._check_tail(segment, commit)
                    break
                segment.end = align(frame.at + frame.frame_bytes, BLOCK)
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
            frame = self._read_frame(segment, first, segment.header.chain, verify=first > folded)
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

    def _read_frame(self, segment: Segment, commit: int, chain: int, verify: bool) -> Frame | None:
        """The frame at the segment's end so far, or None when no whole, valid frame is there."""
        fd, at = segment.fd, segment.end
        header = FrameHeader.decode(os.pread(fd, HEADER, at))
        if header is None or header.commit != commit or header.chain != chain:
            return None
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
        encoded = files.read_exact(fd, header.meta_bytes, at + HEADER, "journal")
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

    # ---- writing --------------------------------------------------------------------------------

    def prepare_writing(self, last: int) -> None:
        """Called once by a writer after `scan`: the next frame follows commit `last`."""
        self.last_commit = last
        self._sealed = True

    def make_durable(self) -> None:
        """A killed writer may have left its last commit in the kernel's hands only.  It was found
        and will be built on, so from now on it must survive a power cut."""
        for number, segment in self.segments.items():
            files.sync(files.CALLS.fdatasync, segment.fd, self._where(number))
        self._dir.sync()

    def seal(self) -> None:
        """The next frame begins a new segment."""
        self._sealed = True

    def append(
        self,
        meta: Meta,
        encoded: bytes,
        frame_bytes: int,
        fill: Callable[[FrameWriter], None],
        wait: bool,
        staging_limit: int,
    ) -> PendingCommit:
        """Write the next commit.  `fill` puts the sections, in the order of the plan.

        With wait=False the part of the frame that fits `staging_limit` is written by a thread.  The
        caller looks at `.error` once `.done`, then calls `settle` or `abandon`.
        """
        self.abandon_unowned()
        size = align(frame_bytes, BLOCK)
        if not self._sealed:
            end, room = self._newest().end, self._newest().room
            self._sealed = end >= SEGMENT_BYTES and end + size > room
        if self._sealed:
            self._begin_segment(size)
        segment = self._newest()
        what = self._where(segment.header.number)
        commit, at = self.last_commit + 1, segment.end
        header = FrameHeader(commit, frame_bytes, len(encoded), self.chain, segment.header.salt)
        self.idle = False
        try:
            with files.explained(f"cannot allocate {frame_bytes} bytes for a commit in {what}"):
                self._allocate(at, size)
            # A waiting commit fills one chunk while others are on their way to disk.
            staged = min(frame_bytes + BLOCK, (WRITERS + 1) * CHUNK if wait else staging_limit)
            buffer = self._staging.reserve(staged)
            self._writer = writer = FrameWriter(self._append_fd, at, header, buffer, what)
            writer.put(encoded)
            writer.pad(64)
            fill(writer)
        except BaseException:
            self._abandon(at)
            raise
        frame = Frame(
            segment.header.number, at, commit, frame_bytes, at + data_start(len(encoded)), 0, meta
        )

        def finish() -> int:
            try:
                digest = writer.finish(parallel=wait)
                files.sync(files.CALLS.fdatasync, self._append_fd, what)
            finally:
                self.idle = True
            return digest

        self._pending = pending = PendingCommit(frame, finish)
        if wait:
            pending.run_here()
        else:
            pending.start()
        return pending

    def settle(self, pending: PendingCommit) -> None:
        """The frame is durable: the next one follows it.  May be repeated after an interrupt."""
        frame = pending.frame
        segment = self.segments[frame.segment]
        segment.end = align(frame.at + frame.frame_bytes, BLOCK)
        segment.size = max(segment.size, segment.end)
        self.last_commit = frame.commit
        self.chain = pending.digest
        self._later = False
        self._pending = None

    def abandon(self, pending: PendingCommit) -> None:
        """The frame was not written, or nobody knows."""
        self._abandon(pending.frame.at)
        self._pending = None

    def abandon_unowned(self) -> None:
        """A commit whose caller was interrupted before it could take it over."""
        if self._pending is not None:
            self._pending.wait()
            self.abandon(self._pending)
        if self._writer is not None:
            self._writer.settle()

    def _newest(self) -> Segment:
        return self.segments[self._number]

    def _allocate(self, at: int, size: int) -> None:
        try:
            files.CALLS.allocate(self._append_fd, at, size)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self.remove_spares():
                raise
            files.CALLS.allocate(self._append_fd, at, size)

    def _begin_segment(self, size: int) -> None:
        """The next segment, for a frame of `size` bytes first."""
        self._close_append()
        number = self._number + 1
        name = segment_name(number)
        if not self.may_reuse():
            self.remove_spares()
        spare, room = self._spares.take(BLOCK + size) or (None, 0)
        header = SegmentHeader(
            number,
            self.last_commit + 1,
            self._uuid,
            secrets.randbits(64),
            self.chain,
            reused=spare is not None,
        )
        with files.explained(f"cannot create {self._dir.describe(name)}"):
            fd = self._open_append(spare or name, os.O_CREAT | os.O_TRUNC if spare is None else 0)
            try:
                buffer = self._staging.reserve(CHUNK)
                buffer[:BLOCK] = np.frombuffer(header.encode(), np.uint8)
                files.write_all(fd, buffer[:BLOCK].data, 0)
                files.sync(files.CALLS.fdatasync, fd, self._where(number))
                if spare is not None:
                    files.CALLS.rename(self._dir.fd, spare, name)
                self._dir.sync()
                read_fd = self._dir.open_regular(name, writable=False)
            except BaseException:
                files.CALLS.close(fd)
                # An empty or torn newest segment is ignored by readers; try not to leave it.
                for made in (spare, name):
                    try:
                        if made is not None:
                            files.CALLS.unlink(self._dir.fd, made)
                    except FileNotFoundError:
                        continue
                    except OSError:
                        self._number = number
                raise
        self._append_fd = fd
        self._number = number
        self.segments[number] = Segment(header, read_fd, BLOCK, BLOCK, room)
        self._sealed = False

    def _open_append(self, name: str, flags: int) -> int:
        flags |= os.O_RDWR
        direct = getattr(os, "O_DIRECT", 0)
        if direct:
            # Bypassing the page cache wrote frames 4x faster than write + fdatasync here.
            try:
                return files.CALLS.open(self._dir.fd, name, flags | direct)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return files.CALLS.open(self._dir.fd, name, flags)

    def _abandon(self, at: int) -> None:
        """After a failed frame: shorten the file if that is possible, write elsewhere next time."""
        self._sealed = True
        self.idle = True
        if self._writer is not None:
            self._writer.settle()
        try:
            files.CALLS.truncate(self._append_fd, at)
        except OSError:
            return

    def _close_append(self) -> None:
        fd, self._append_fd = self._append_fd, -1
        if fd >= 0:
            files.CALLS.close(fd)

    # ---- keeping house --------------------------------------------------------------------------

    @property
    def bytes(self) -> int:
        """On disk, what lies behind the last commit of a reused file included."""
        return sum(files.allocated_bytes(segment.fd) for segment in self.segments.values())

    @property
    def spare_bytes(self) -> int:
        """In files of folded segments, kept for those to come."""
        return self._spares.bytes

    @property
    def used(self) -> int:
        """Up to the last commit."""
        return sum(segment.end for segment in self.segments.values())

    def older_than(self, commit: int) -> list[int]:
        """Segments whose commits are all at or below `commit`, ascending."""
        if self._later:
            return []
        numbers = sorted(self.segments)
        old = []
        for i, number in enumerate(numbers):
            later = [self.segments[n].header.first_commit for n in numbers[i + 1 :]]
            if later:
                last = min(later) - 1  # what lies behind was replaced, maybe in several segments
            elif self._sealed or number != self._number:
                last = self.last_commit
            else:
                continue
            if last <= commit:
                old.append(number)
        return old

    def delete(self, numbers: list[int], keep: int = 0) -> None:
        """Remove segments that are folded, oldest first; up to `keep` bytes stay as spare files.

        Where some are to stay, a thread removes the others.  Each removal, or renaming, is made
        durable before the next: were a segment gone, but not an older one whose end it had
        replaced, that end would come back.
        """
        for number in numbers:
            segment = self.segments.pop(number)
            if number == self._number:
                self._close_append()
            size = os.fstat(segment.fd).st_size
            os.close(segment.fd)
            if size < WORTH or not keep:
                files.CALLS.unlink(self._dir.fd, segment_name(number))
                self._dir.sync()
                continue
            spare = self._spares.rename(segment_name(number), number)
            self._dir.sync()
            if self._spares.bytes + size <= keep:
                self._spares.admit(spare, size)
            else:
                self._spares.reject(spare)
        self._spares.discard()

    def remove_spares(self) -> bool:
        """Give the room of spare files back, where they only lie about or the disk is full."""
        return self._spares.remove()

    def delete_strays(self) -> None:
        """Remove segments that `scan` ignored or set aside: they hold no whole frame."""
        for name in self._dir.names():
            number = segment_number(name)
            if number is not None and number not in self.segments:
                files.CALLS.unlink(self._dir.fd, name)

    def walk(self) -> Iterator[Segment]:
        yield from (self.segments[number] for number in sorted(self.segments))

    def close(self) -> None:
        if self._pending is not None:  # a thread may be writing to the descriptor
            self._pending.wait()
            self._pending = None
        if self._writer is not None:
            self._writer.settle()
        self._spares.settle()
        self._close_append()
        for segment in self.segments.values():
            os.close(segment.fd)
        self.segments.clear()

    def forget(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        for fd in [self._append_fd, *(segment.fd for segment in self.segments.values())]:
            try:
                if fd >= 0:
                    os.close(fd)
            except OSError:
                continue
        self._append_fd = -1
        self.segments.clear()


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


__all__ = [
    "Frame",
    "FrameWriter",
    "Journal",
    "PendingCommit",
    "Segment",
    "StoreError",
    "read_failed",
    "read_indices",
]
