"""The error tree.  Every class is also the builtin that a careful caller would catch."""

from __future__ import annotations


class SparseEmbedError(Exception):
    """Base of every error that this package raises on purpose."""


class ArgumentError(SparseEmbedError, ValueError):
    """An argument has the wrong type, shape, dtype or value.  Nothing was changed."""


class IndexRangeError(SparseEmbedError, IndexError):
    """A row number lies outside the table.  Nothing was changed."""


class MissingExtraError(SparseEmbedError, ImportError):
    """An optional package is not installed; the message names the `pip install` that brings it."""


class StoreError(SparseEmbedError, OSError):
    """A store on disk cannot be created, opened, read or written."""


class NotAStoreError(StoreError):
    """The path exists but is not a sparse_embed store, or is not there at all."""


class UnsupportedVersionError(StoreError):
    """The store was written by a newer format than this package knows."""


class CorruptStoreError(StoreError):
    """A file of the store is truncated, damaged or foreign."""


class LockedError(StoreError):
    """Another process writes to the store."""


class ReadOnlyError(StoreError):
    """The store was opened for reading, or turned read-only after a failed fsync."""


class StoreClosedError(SparseEmbedError, ValueError):
    """The store was closed, or belongs to the parent of this forked process."""


class StoreFailedError(SparseEmbedError, RuntimeError):
    """A step was interrupted; only `rollback()` and `close()` are possible."""


class DeviceMemoryError(SparseEmbedError, MemoryError):
    """A GPU has too little memory for what was asked; the table is as it was."""


class DeviceError(SparseEmbedError, RuntimeError):
    """CUDA failed; tables on that GPU are closed at their last commit."""
