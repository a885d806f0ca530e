"""A commit frame on its way to disk: filled in chunks, each written while the next are filled.

A commit's time is then the disk's alone: gathering and checksums (a quarter of it before) happen
meanwhile.  Nothing depends on the order of the writes: the sync behind the last one decides.
"""

from __future__ import annotations

from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from sparse_embed.storage import files
from sparse_embed.storage.background import Background
from sparse_embed.storage.frame import (
    BLOCK,
    DIGEST_BLOCK,
    TRAILER,
    FrameDigest,
    FrameHeader,
    align,
    trailer,
)
from sparse_embed.storage.fresh_memory import fresh_memory

CHUNK = 8 << 20  # written at a time
WRITERS = 2  # chunks on their way at one time: a disk does more of them at once


class Staging:
    """One recycled, page-aligned buffer for frames on their way to disk."""

    def __init__(self) -> None:
        self.bytes: NDArray[np.uint8] = np.empty(0, np.uint8)

    def reserve(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes, rounded up to whole chunks."""
        size = align(max(size, CHUNK), CHUNK)
        if self.bytes.size < size:
            self.bytes = np.empty(0, np.uint8)
            # A quarter more, which costs nothing until a frame needs it: frames are rarely of one
            # size, and memory had anew takes longer than filling it.
            self.bytes = np.frombuffer(fresh_memory(align(size + size // 4, CHUNK)), np.uint8)
        return self.bytes[:size]


class FrameWriter:
    """Fills chunks of the staging buffer; threads write the full ones.

    Whoever gives up on a frame calls `settle` before the descriptor or the buffer goes to anyone
    else.  A frame of less than a chunk needs none.
    """

    def __init__(
        self, fd: int, at: int, header: FrameHeader, buffer: NDArray[np.uint8], what: str
    ) -> None:
        self._fd = fd
        self._at = at
        self._header = header
        self._buffer = buffer
        self._chunk = min(CHUNK, buffer.size)
        self._what = what
        self._begin = 0  # of the chunk that is filled
        self._filled = 0
        self._digested = 0  # of what is filled
        self._sent = 0
        self._digest = FrameDigest(header.salt)
        self._queue: SimpleQueue[tuple[int, int, int] | None] = SimpleQueue()  # begin, size, to
        self._free: SimpleQueue[int] = SimpleQueue()  # begins of chunks to go on with
        for begin in range(self._chunk, buffer.size - self._chunk + 1, self._chunk):
            self._free.put(begin)
        self._threads: list[Background] = []
        self._error: BaseException | None = None
        self.put(header.encode())

    def put(self, data: bytes | memoryview | NDArray[np.uint8]) -> None:
        """Append bytes."""
        if not len(data):
            return
        view = np.frombuffer(data, np.uint8)
        while view.size:
            room = self.room()
            n = min(room.size, view.size)
            room[:n] = view[:n]
            self.advance(n)
            view = view[n:]

    def pad(self, to: int) -> None:
        """Zeros up to a multiple of `to`, counted from the frame's start."""
        position = self._sent + self._filled
        self.put(bytes(align(position, to) - position))

    def room(self) -> NDArray[np.uint8]:
        """The free part of the chunk, never empty; call `advance` with what was filled."""
        if self._filled == self._chunk:
            self._take_digest()
            self._send()
        return self._data(self._chunk)[self._filled :]

    def advance(self, count: int) -> None:
        self._filled += count

    @property
    def salt(self) -> np.uint64:
        """The seed of digests."""
        return np.uint64(self._header.salt)

    @property
    def to_block(self) -> int:
        """How many bytes are missing to the end of a digest block."""
        return DIGEST_BLOCK - self._filled % DIGEST_BLOCK

    def blocks(self, most: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Free whole digest blocks of at most so many bytes, and a place for the digest of each;
        none unless the next byte begins one.  Call `advance_blocks` when both are filled."""
        room = self.room()
        count = 0 if self._filled % DIGEST_BLOCK else min(room.size, most) // DIGEST_BLOCK
        return room[: count * DIGEST_BLOCK], np.empty(count, np.uint64)

    def advance_blocks(self, digests: NDArray[np.uint64]) -> None:
        self._take_digest()
        self._digest.add(digests)
        self._filled += digests.size * DIGEST_BLOCK
        self._digested = self._filled

    def _take_digest(self, parallel: bool = True) -> None:
        self._digest.update(self._data(self._filled)[self._digested :], parallel)
        self._digested = self._filled

    def finish(self, parallel: bool) -> int:
        """Write what is left, the trailer and the padding; returns the frame's digest."""
        if self._sent + self._filled != self._header.frame_bytes - TRAILER:
            raise AssertionError("a frame was not filled as planned")
        self._take_digest(parallel)
        digest = self._digest.value()
        end = align(self._filled + TRAILER, BLOCK)
        if end > self._chunk:  # the trailer starts a chunk of its own
            self._send()
            end = BLOCK
        tail = self._data(end)
        tail[self._filled :] = 0
        tail[self._filled : self._filled + TRAILER] = np.frombuffer(
            trailer(self._header.commit, digest), np.uint8
        )
        self._write(tail, self._at + self._sent)
        self._join()
        if self._error is not None:
            raise self._error
        return digest

    def settle(self) -> None:
        """Stop; block until nothing is written any more."""
        if self._threads:
            self._error = self._error or InterruptedError("the commit was given up")
            self._join()

    def _join(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.wait()

    def _data(self, size: int) -> NDArray[np.uint8]:
        return self._buffer[self._begin : self._begin + size]

    def _send(self) -> None:
        """Hand what is filled to a thread and go on with another chunk, once one is free."""
        while len(self._threads) < WRITERS:
            thread = Background(self._drain)
            self._threads.append(thread)
            thread.start()
        self._queue.put((self._begin, self._filled, self._at + self._sent))
        begin = self._free.get()
        if self._error is not None:
            raise self._error
        self._begin = begin
        self._sent += self._filled
        self._filled = self._digested = 0

    def _drain(self) -> None:
        while (item := self._queue.get()) is not None:
            begin, size, at = item
            try:
                if self._error is None:
                    self._write(self._buffer[begin : begin + size], at)
            except BaseException as error:
                self._error = error
            self._free.put(begin)

    def _write(self, data: NDArray[np.uint8], at: int) -> None:
        with files.explained(f"cannot write a commit to {self._what}"):
            files.write_all(self._fd, data.data, at)
