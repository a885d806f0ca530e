"""The redo journal: append a commit frame (segments.py reads them back).

- One frame, one fdatasync, which covers the parts written ahead of it too.
- A new segment's directory entry is synced before its first frame counts.
- Space is allocated before a frame is written: a full disk leaves the journal as it was.
- A new segment takes the file of a folded one, if there is a spare (spares.py tells the order).
- After a failed write or sync nothing more is appended to that file: its pages may be marked clean
  without being on disk.  The next frame begins a new segment.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
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
    """A frame, or a part written ahead of one, whose end a thread is writing."""

    def __init__(self, frame: Frame, began: float, finish: Callable[[], int]) -> None:
        self.frame = frame
        self.seconds = 0.0  # that it took, once it is done
        self._began = began
        self.error: BaseException | None = StoreError(
            errno.EINTR, f"commit {frame.commit} was interrupted before it was written"
        )
        self.digest = 0
        self._finish = finish
        self._background = Background(self._work)

    def _work(self) -> None:
        try:
            self.digest = self._finish()
            self.error = None
        except BaseException as error:
            self.error = error
        self.seconds = time.perf_counter() - self._began

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
        self.parts: list[PendingCommit] = []  # of a commit that is to come, in the newest segment
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
        self.abandon_parts()
        self._sealed = True

    def append(
        self,
        meta: Meta,
        encoded: bytes,
        frame_bytes: int,
        fill: Callable[[FrameWriter], None],
        wait: bool,
        staging_limit: int,
        ahead: int = 0,
    ) -> PendingCommit:
        """Write the next commit.  `fill` puts the sections, in the order of the plan.

        With wait=False what of the frame fits `staging_limit` is written by a thread.  The caller
        looks at `.error` once `.done`, then calls `settle` or `abandon`.

        With `ahead` it is a part of the next commit, not synced, in `parts` until a commit follows
        or all are abandoned.  The caller has looked at the parts before, which are done.  `ahead`
        is about as many bytes as the commit with all its parts will have.
        """
        began, part = time.perf_counter(), ahead > 0
        self.abandon_unowned()
        size = align(frame_bytes, BLOCK)
        self._choose_segment(max(size, ahead), part)
        segment = self._newest()
        what = self._where(segment.header.number)
        before = self.parts[-1] if self.parts else None
        commit, at = self.last_commit + 1, before.frame.end if before else segment.end
        chain = before.digest if before else self.chain
        salt = segment.header.salt
        header = FrameHeader(commit, frame_bytes, len(encoded), chain, salt, part)
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
            self._abandon()
            raise
        parts = () if part else tuple(known.frame for known in self.parts)
        data_at = at + data_start(len(encoded))
        frame = Frame(segment.header.number, at, commit, frame_bytes, data_at, 0, meta, parts)

        def finish() -> int:
            try:
                digest = writer.finish(parallel=wait)
                if not part:
                    files.sync(files.CALLS.fdatasync, self._append_fd, what)
            finally:
                self.idle = True
            return digest

        pending = PendingCommit(frame, began, finish)
        if part:
            self.parts.append(pending)
        else:
            self._pending, self.parts = pending, []  # they are its parts now
        if wait:
            pending.run_here()
        else:
            pending.start()
        return pending

    def settle(self, pending: PendingCommit) -> None:
        """The frame is durable: the next one follows it.  May be repeated after an interrupt."""
        frame = pending.frame
        segment = self.segments[frame.segment]
        segment.end = frame.end
        segment.size = max(segment.size, segment.end)
        self.last_commit = frame.commit
        self.chain = pending.digest
        self._later = False
        self._pending = None

    def abandon(self, pending: PendingCommit) -> None:
        """The frame was not written, or nobody knows."""
        self._abandon()
        self._pending = None

    def abandon_unowned(self) -> None:
        """A commit whose caller was interrupted before it could take it over."""
        self._wait_for_parts()
        if self._pending is not None:
            self._pending.wait()
            self.abandon(self._pending)
        if self._writer is not None:
            self._writer.settle()

    def abandon_parts(self) -> None:
        """No commit will have what was written ahead."""
        if self.parts:
            self._wait_for_parts()
            self._abandon()

    def _wait_for_parts(self) -> None:
        for part in self.parts:
            part.wait()

    def _newest(self) -> Segment:
        return self.segments[self._number]

    def _allocate(self, at: int, size: int) -> None:
        try:
            files.CALLS.allocate(self._append_fd, at, size)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self.remove_spares():
                raise
            files.CALLS.allocate(self._append_fd, at, size)

    def _choose_segment(self, size: int, part: bool) -> None:
        """The newest segment, or a new one, for a commit of `size` bytes."""
        if self.parts:  # they and their frame lie in one
            return
        if not self._sealed:
            newest = self._newest()
            full = newest.end >= SEGMENT_BYTES and newest.end + size > newest.room
            self._sealed = full or (part and not newest.header.parts)
        if self._sealed:
            self._begin_segment(size, parts=part)

    def _begin_segment(self, size: int, parts: bool) -> None:
        """The next segment, for a commit of `size` bytes first."""
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
            parts=parts,
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

    def _abandon(self) -> None:
        """After a failed frame: shorten the file if that is possible, write elsewhere next time."""
        self._sealed = True
        self.parts = []
        self.idle = True
        if self._writer is not None:
            self._writer.settle()
        try:
            files.CALLS.truncate(self._append_fd, self._newest().end)
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
    def staging_bytes(self) -> int:
        """Of memory for frames on their way to disk."""
        return self._staging.bytes.size

    @property
    def ahead_bytes(self) -> int:
        """Of parts whose commit is to come."""
        return sum(part.frame.frame_bytes for part in self.parts)

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
        self._wait_for_parts()
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
        self.parts = []
        self.segments.clear()
