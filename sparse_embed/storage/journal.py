"""The redo journal: append a commit frame (segments.py reads them back).

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
from collections.abc import Callable

import numpy as np

from sparse_embed.errors import StoreError
from sparse_embed.storage import files
from sparse_embed.storage.background import Background
from sparse_embed.storage.frame import (
    BLOCK,
    FrameHeader,
    Meta,
    SegmentHeader,
    align,
    data_start,
    segment_name,
    segment_number,
)
from sparse_embed.storage.frame_writer import CHUNK, WRITERS, FrameWriter
from sparse_embed.storage.segments import Frame, Segment, Segments
from sparse_embed.storage.spares import WORTH, Spares

SEGMENT_BYTES = 256 << 20  # a segment takes no further frame beyond this size


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


class Journal(Segments):
    """The segments of one store, and the next commit."""

    def __init__(self, directory: files.Directory, uuid: bytes, writable: bool) -> None:
        super().__init__(directory, uuid)
        self._writable = writable
        self._append_fd = -1  # of the newest segment, O_DIRECT where the file system has it
        self._sealed = True  # the next frame begins a new segment
        self._pending: PendingCommit | None = None  # launched, and neither settled nor abandoned
        self._writer: FrameWriter | None = None  # of the newest frame
        self.idle = True  # no frame is being written
        self._spares = Spares(directory)
        self.may_reuse: Callable[[], bool] = lambda: False  # does no reader need folded segments?

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
