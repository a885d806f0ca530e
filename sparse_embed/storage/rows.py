"""One table's rows, wherever their newest versions are.

    memory (resident.py)  >  scratch file (changed, evicted)  >  journal (committed, not folded)
    >  data file (folded)  >  nowhere: a virgin row, all zeros

`committed` maps a row to the place of its newest committed version in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_embed.device import DeviceMemory
from sparse_embed.errors import CorruptStoreError
from sparse_embed.kernels.records import DIRTY, UNSAVED
from sparse_embed.kernels.rowio import read_records
from sparse_embed.storage.budget import Budget, process_budget
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.frame import TableSection, segment_name
from sparse_embed.storage.frame_writer import FrameWriter
from sparse_embed.storage.host_tier import HostTier
from sparse_embed.storage.journal import Journal
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.places import Places
from sparse_embed.storage.read_ahead import HAS_ADVICE, read_ahead
from sparse_embed.storage.resident import IdentitySlots, IndexedSlots, Slots
from sparse_embed.storage.scratch import Scratch
from sparse_embed.storage.segments import Frame, read_failed

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]

_SEGMENT_SHIFT = 44  # a place: segment number << 44 | byte offset (16 TiB of journal a segment)
_OFFSET_MASK = (1 << _SEGMENT_SHIFT) - 1
_CHUNK_BYTES = 8 << 20
_SMALL = 16 << 20  # a table of this size is laid out by row number from the start
_DENSE = 0.25  # a larger one when this part of its rows is in memory

_NOTED = 3  # rows noted for each of the table: most are folded before they need a place

# read(at, out) puts the records that a slice of some list names into out.
Reader = Callable[[slice, Floats], None]


@dataclass
class TakenRows:
    """The rows of a frame that is on its way to disk."""

    rows: Int64
    scratch_slots: Int64


class RowStore:
    """The rows of one table.  `file` and `journal` are None for a table in memory."""

    def __init__(
        self,
        layout: Layout,
        file: DataFile | None,
        journal: Journal | None,
        folder: Path | None,
        cache_bytes: int | None,
        new: bool,
        memory: DeviceMemory | None = None,
    ) -> None:
        """`memory`: of the GPU that resident rows are on; `cache_bytes` is then of its memory."""
        self.layout = layout
        self.file = file
        self._journal = journal
        own = cache_bytes if memory is None else None  # what is not resident is in host memory
        self.budget = process_budget() if own is None else Budget(own)
        self._committed = Places(layout.num_embeddings, self.budget)
        self._noted: list[tuple[Int64, Frame, TableSection]] = []  # not in the map yet
        self._changed = DIRTY  # flags of rows changed since the last commit
        self._chunk = max(1, _CHUNK_BYTES // layout.record_bytes)
        self._scratch: Scratch
        self.resident: Slots
        self.memory = memory
        if memory is not None:
            from sparse_embed.storage.device_resident import device_slots

            tier = self._scratch = HostTier(folder, layout.record_bytes, self.budget)
            self.resident = device_slots(
                layout, self._fetch, self._stored, new, tier, cache_bytes, memory
            )
            return
        self._scratch = Scratch(folder, layout.record_bytes, self.budget)
        needed = IdentitySlots.bytes_needed(layout)
        if needed <= _SMALL and self.budget.draw(needed):
            self.resident = self._identity(new)
        else:
            self.resident = IndexedSlots(layout, self._fetch, self._scratch, self.budget)

    def _identity(self, new: bool) -> IdentitySlots:
        return IdentitySlots(self.layout, self._fetch, self._stored, new, self.budget)

    def prepare(self) -> None:
        """Between operations: once a good part of the rows is in memory, lay all of them out by row
        number, which saves the index, if the budget has room for both layouts meanwhile.

        Not from the start: memory with huge pages costs what the table is large, not what is used.
        """
        compact = self.resident
        if self.memory is not None or not isinstance(compact, IndexedSlots):
            return
        if compact.count < self.layout.num_embeddings * _DENSE or self._scratch.count:
            return
        if self.budget.draw(IdentitySlots.bytes_needed(self.layout)):
            # Without files all other rows are virgin, as fresh memory is.
            spread = self._identity(new=self.file is None)
            for rows, slots in compact.entries(self._chunk):
                spread.adopt(rows, compact.records[slots], compact.flags[slots])
            self.resident = spread
            compact.release()

    @property
    def committed(self) -> Places:
        """Row -> place of its newest version in the journal."""
        self._map_noted()
        return self._committed

    def _map_noted(self) -> None:
        for rows, frame, section in self._noted:
            self._committed.insert(rows, places_of(frame, section))
        noted, self._noted = self._noted, []  # last: after an interrupt all of it is done again
        self.budget.give(sum(rows.nbytes for rows, _, _ in noted))

    @property
    def busy(self) -> bool:
        """Interrupted in the middle of a change of state."""
        return self.resident.busy or self._scratch.busy

    # ---- reading --------------------------------------------------------------------------------

    def _fetch(self, rows: Int64, out: Floats) -> Int64:
        """Newest versions of rows that are not in memory; see resident.Fetch."""
        origin = self._scratch.find(rows)
        spilled = np.flatnonzero(origin >= 0)
        if spilled.size == rows.size:
            self._scratch.read(origin, out)
        elif spilled.size:
            data = np.empty((spilled.size, out.shape[1]), np.float32)
            self._scratch.read(origin[spilled], data)
            out[spilled] = data
        rest = np.flatnonzero(origin < 0)
        if rest.size:
            self._fetch_committed(rows, rest, out)
        return origin

    def _fetch_committed(self, rows: Int64, wanted: Int64, out: Floats) -> None:
        """out[wanted] = the last committed versions of rows[wanted]."""
        places = self.committed.find(rows[wanted])
        inside = places >= 0
        if inside.any():
            assert self._journal is not None
            at = wanted[inside]
            data = np.empty((at.size, out.shape[1]), np.float32)
            read_places(self._journal, places[inside], data)
            out[at] = data
        outside = wanted[~inside]
        if outside.size:
            if self.file is None:
                out[outside] = 0.0
            elif outside.size == out.shape[0]:
                self.file.read(rows, out)
            else:
                data = np.empty((outside.size, out.shape[1]), np.float32)
                self.file.read(rows[outside], data)
                out[outside] = data

    def _stored(self, rows: Int64) -> NDArray[np.bool_]:
        """Which rows have a committed version, in the journal or (perhaps) in the data file."""
        found = self.committed.find(rows) >= 0
        if self.file is not None:
            found |= self.file.maybe_stored(rows)
        return found

    def read_ahead(self, rows: Int64) -> None:
        """Let a thread ask the kernel for the records of `rows` that are on disk, not in memory."""
        absent = rows[self.resident.find(rows) < 0]
        if not HAS_ADVICE or not absent.size:
            return
        size = self.layout.record_bytes
        slots = self._scratch.find(absent)
        places = self._scratch.places(slots[slots >= 0])
        absent = absent[slots < 0]
        found = self.committed.find(absent)
        if self._journal is not None:
            for number, _, offsets in split_places(found[found >= 0]):
                places.append((self._journal.segments[number].fd, offsets))
        if self.file is not None:
            folded = absent[found < 0]
            folded = folded[self.file.maybe_stored(folded)]
            if folded.size:
                places.append((self.file.fd, self.file.offsets(folded)))
        if places:
            read_ahead(places, size)

    def read(self, rows: Int64) -> Floats:
        """A copy of the newest versions of `rows`, without bringing them into memory to stay."""
        out = np.empty((rows.size, self.layout.lanes), np.float32)
        slots = self.resident.find(rows)
        there = np.flatnonzero(slots >= 0)
        if there.size == rows.size:
            self.resident.gather(slots, out)
            return out
        if there.size:
            data = np.empty((there.size, self.layout.lanes), np.float32)
            self.resident.gather(slots[there], data)
            out[there] = data
        absent = np.flatnonzero(slots < 0)
        data = np.empty((absent.size, self.layout.lanes), np.float32)
        self._fetch(rows[absent], data)
        out[absent] = data
        return out

    def write(self, rows: Int64, data: Floats) -> None:
        """Set the records of distinct `rows`, which must fit the cache together."""
        slots = self.resident.slots(rows)
        if slots is None:
            raise MemoryError("rows do not fit the cache")
        self.resident.put(slots, data)

    def written(self) -> Int64:
        """Sorted rows whose newest version is not virgin."""
        newer = self.newer_than_file()
        parts = []
        for begin in range(0, newer.size, self._chunk):
            part = newer[begin : begin + self._chunk]
            parts.append(part[self.layout.written(self.read(part))])
        if self.file is not None:
            folded = self.file.written()
            parts.append(folded[~np.isin(folded, newer, assume_unique=True)])
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)

    def newer_than_file(self) -> Int64:
        """Sorted rows whose newest version may differ from the data file's."""
        parts = [self.committed.items()[0], self._scratch.rows()]
        parts.append(self.resident.rows_of(self.resident.flagged(UNSAVED)))
        return np.unique(np.concatenate(parts))

    # ---- commits --------------------------------------------------------------------------------

    def take(self) -> TakenRows:
        """What the next frame must hold: resident rows first, then those in the scratch file."""
        return self._taken(self.resident.flagged())

    def take_ahead(self) -> TakenRows:
        """What a part written ahead of a frame holds: as `take`, but for resident rows that the
        newest frame had.  They are likely to change once more, and would be written twice."""
        return self._taken(self.resident.cold())

    def _taken(self, slots: Int64) -> TakenRows:
        rows = self.resident.rows_of(slots)
        spilled, scratch_slots = self._scratch.dirty()
        return TakenRows(np.concatenate([rows, spilled]) if spilled.size else rows, scratch_slots)

    def fill(self, writer: FrameWriter, taken: TakenRows) -> None:
        """Put row numbers and records into a frame."""
        rows = taken.rows
        writer.put(np.ascontiguousarray(rows, "<i8").view(np.uint8))
        writer.pad(64)
        resident = rows.size - taken.scratch_slots.size
        if resident:
            slots = self.resident.find(rows[:resident])
            if self.resident.in_blocks:
                self._put_blocks(writer, slots)
            else:
                self._put(writer, resident, lambda at, out: self.resident.gather(slots[at], out))
        if taken.scratch_slots.size:
            places = taken.scratch_slots
            self._put(writer, places.size, lambda at, out: self._scratch.read(places[at], out))
        writer.pad(64)

    def _put(self, writer: FrameWriter, n: int, read: Reader) -> None:
        size, lanes = self.layout.record_bytes, self.layout.lanes
        done = 0
        while done < n:
            room = writer.room()
            fits = min(room.size // size, n - done, self._chunk)
            if fits:
                out = room[: fits * size].view(np.float32).reshape(fits, lanes)
                read(slice(done, done + fits), out)
                writer.advance(fits * size)
                done += fits
            else:  # a record across the end of the buffer
                one = np.empty((1, lanes), np.float32)
                read(slice(done, done + 1), one)
                writer.put(one.view(np.uint8).reshape(-1))
                done += 1

    def _put_blocks(self, writer: FrameWriter, slots: Int64) -> None:
        """Resident records: whole digest blocks of the frame in one pass."""
        size, lanes = self.layout.record_bytes, self.layout.lanes
        done, total = 0, slots.size * size
        while done < total:
            out, digests = writer.blocks(total - done)
            if digests.size:
                self.resident.gather_blocks(slots, done, writer.salt, out, digests)
                writer.advance_blocks(digests)
                done += out.size
                continue
            end = min(done + writer.to_block, total)
            part = slots[done // size : -(-end // size)]
            data = np.empty((part.size, lanes), np.float32)
            self.resident.gather(part, data)
            writer.put(data.view(np.uint8).reshape(-1)[done % size :][: end - done])
            done = end

    def mark_written(self, taken: TakenRows) -> None:
        """The frame holds what `take` listed; changes from now on belong to the next one."""
        self._changed = DIRTY
        self.resident.mark_written()
        self._scratch.mark_written(taken.scratch_slots)

    def mark_written_ahead(self, taken: TakenRows) -> None:
        """As `mark_written`, for a part and what `take_ahead` listed."""
        self._changed = UNSAVED
        resident = taken.rows.size - taken.scratch_slots.size
        self.resident.mark_some_written(self.resident.find(taken.rows[:resident]))
        self._scratch.mark_written(taken.scratch_slots)

    def settle(self) -> None:
        """What was marked as written is durable; `note_frame` tells where."""
        self.resident.settle(True)

    def settle_failed(self) -> None:
        """What was marked as written was not: it belongs to the next frame."""
        self._changed = DIRTY
        self.resident.settle(False)

    def note_frame(self, frame: Frame, section: TableSection, rows: Int64) -> None:
        """The newest committed versions of `rows` are in this frame."""
        if not rows.size:
            return
        if int(rows.min()) < 0 or int(rows.max()) >= self.layout.num_embeddings:
            raise CorruptStoreError(
                5,
                f"{segment_name(frame.segment)}: commit {frame.commit} names rows {rows.min()} to "
                f"{rows.max()} of a table of {self.layout.num_embeddings} rows",
            )
        # With every row in memory nobody asks before a rollback: the map can wait.
        self._noted.append((rows, frame, section))
        self.budget.take(rows.nbytes)
        limit = _NOTED * self.layout.num_embeddings if self.resident.whole else 0
        if sum(rows.size for rows, _, _ in self._noted) > limit:
            self._map_noted()

    def drop_segments(self, numbers: list[int]) -> None:
        """These segments are folded and gone: their rows are found in the data file."""
        gone = [noted for noted in self._noted if noted[1].segment in numbers]
        self._noted = [noted for noted in self._noted if noted[1].segment not in numbers]
        self.budget.give(sum(rows.nbytes for rows, _, _ in gone))
        segments = np.array(numbers, np.int64)
        self._committed.drop(lambda places: np.isin(places >> _SEGMENT_SHIFT, segments))

    def rollback(self) -> None:
        """Forget everything since the last commit."""
        self._changed = DIRTY
        self.resident.reset()

    def close(self) -> None:
        self.resident.release()
        self._scratch.release()
        self.budget.give(sum(rows.nbytes for rows, _, _ in self._noted))
        self._noted = []
        self._committed.release()
        if self.file is not None:
            self.file.close()

    def info(self) -> dict[str, object]:
        resident = self.resident
        return {
            "resident": resident.kind,
            "resident_capacity": resident.capacity,
            "cache_bytes": self.budget.total,
            "changed_rows": int(resident.flagged(self._changed).size)
            + int(self._scratch.dirty(self._changed)[0].size),
            "spilled_bytes": self._scratch.nbytes,
            "rows_in_journal": self.committed.count,
        }


def places_of(frame: Frame, section: TableSection) -> Int64:
    """Where each record of a frame's section lies, as `committed` stores it."""
    first = frame.data_at + section.records_at
    offsets = first + np.arange(section.rows, dtype=np.int64) * section.record_bytes
    return offsets + (frame.segment << _SEGMENT_SHIFT)


def split_places(places: Int64) -> Iterator[tuple[int, Int64, Int64]]:
    """For each segment: its number, the positions in `places` that lie in it, their offsets."""
    numbers = places >> _SEGMENT_SHIFT
    for number in np.unique(numbers).tolist():
        at = np.flatnonzero(numbers == number)
        yield number, at, places[at] & _OFFSET_MASK


def read_places(journal: Journal, places: Int64, out: Floats) -> None:
    """out[i] = the record at places[i] of the journal."""
    for number, part, offsets in split_places(places):
        data = np.empty((part.size, out.shape[1]), np.float32)
        at, code = read_records(journal.segments[number].fd, offsets, data.view(np.uint8))
        if at >= 0:
            read_failed(code, segment_name(number))
        out[part] = data
