"""KeyHasher: raw keys (strings, bytes, ids of any width) to row numbers.

The recipe of the default scheme, bit for bit
---------------------------------------------
1. A string is its UTF-8 bytes, bytes are themselves, an integer is the 8 little-endian bytes of its
   64-bit two's complement (so int8 5, uint64 5 and the Python int 5 are one key; int64 -1 and
   uint64 2^64 - 1 are one key too).  The string "5" and the integer 5 are different keys.
2. (h1, h2) = MurmurHash3_x64_128(bytes, seed), what `mmh3.hash64(bytes, seed, signed=False)` gives.
3. word 0 = h1; word j = fmix64(h1 + j (h2 | 1) mod 2^64) for j = 1 .. num_hashes - 1.
4. row j = floor(word_j * num_embeddings / 2^64).

Why multiply-shift and not modulo (step 4): it serves every table size, costs 0.8 ns where a 64-bit
division costs 2.1 ns, treats powers of two like other sizes (it takes the high bits), and its bias
is the same (E / 2^64 at most).  Why step 3 rehashes: plain double hashing (h1 + j h2) makes every
further row a function of the first two, so two keys that share two rows share them all; with fmix64
all k rows of two keys agree by accident of rate E^-k, for any k.  Row 0 is the same for every
`num_hashes`.  The 4 x 32 bits that thinc takes end at 4 rows a key and 2^32 rows of table.

A pair (feature, value) is hashed in step 2 from h1, h2 = the 128-bit hash of the feature's name,
instead of h1 = h2 = seed: fields of one table do not clash for having equal values.
"""

from __future__ import annotations

import operator
import sys
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels import hashing
from sparse_embed.kernels._jit import guard_fork, new_counter
from sparse_embed.keys.census import Census
from sparse_embed.keys.chunks import (
    EMPTY_LENGTHS,
    Chunk,
    Coded,
    Ids,
    KeyColumn,
    Strings,
    first_true,
    is_missing,
    no_key,
)
from sparse_embed.keys.input import as_column
from sparse_embed.keys.pairs import holds_pairs, split_pairs, spread
from sparse_embed.keys.schemes import Scheme, find_scheme

Indices = npt.NDArray[np.int64]
Signs = npt.NDArray[np.int8]
States = npt.NDArray[np.uint64]
Missing = Literal["raise", "skip", "hash"]

MISSING_INDEX = -1
"""The row number of a missing key under missing="skip"; pass `padding_idx=-1` to leave it out."""

_NO_SIGNS = np.empty(0, np.int8)
_ALL_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)


class KeyHasher:
    """Raw keys to row numbers of a table, collisions accepted: one parallel pass, no vocabulary.

    >>> hasher = KeyHasher(1_000_003)
    >>> hasher(["new york", "münchen"])
    array([ 27912, 622089])
    >>> hasher([5, -1, 2**62])
    array([ 61840, 628491, 932619])
    >>> hasher([("country", "DE"), ("age", 5)])
    array([988050, 802304])
    >>> KeyHasher(1_000_003, num_hashes=2)([5])
    array([[ 61840, 614102]])
    >>> KeyHasher(1_000_003).hashes([5])
    array([[1140754268591781659,   38976600985373462]], dtype=uint64)

    Args:
        num_embeddings: rows of the table, 1 to 2^63 (2^32 for schemes of 32-bit hashes, 2^31 - 1
            for sklearn); need not be a power of two.
        num_hashes: rows of a key (Bloom embeddings: the rows are summed by the lookup).
        seed: 0 to 2^32 - 1, another seed is another hash function; None takes the scheme's own
            (2166136261 for floret, 0 for others that take one).
        scheme: "murmur3" (ours, see the module's docstring) or the exact recipe of another system;
            `keys.schemes` has the table.
        missing: what None, NaN, NA or an Arrow null becomes. "raise": a named error. "skip": row
            number -1, for `padding_idx=-1`. "hash" (murmur3 only): rows of its own, equal to no
            string's: the hash of no bytes from the complement of (h1, h2).

    Raises:
        ArgumentError: an argument is out of the range given here.

    Results never depend on the number of threads, the platform or how the keys were passed.
    """

    def __init__(
        self,
        num_embeddings: int,
        num_hashes: int = 1,
        seed: int | None = 0,
        *,
        scheme: str = "murmur3",
        missing: Missing = "raise",
    ) -> None:
        recipe = find_scheme(scheme)
        self.scheme: str = recipe.name
        self._scheme: Scheme = recipe
        self.num_embeddings: int = checked_integer(
            "num_embeddings", num_embeddings, recipe.max_embeddings
        )
        self.num_hashes: int = checked_integer("num_hashes", num_hashes, recipe.max_hashes or 1024)
        self.seed: int = self._seed(recipe, seed)
        if missing not in ("raise", "skip", "hash"):
            raise ArgumentError(f'missing: expected "raise", "skip" or "hash", got {missing!r}')
        if missing == "hash" and recipe.code != hashing.MURMUR3:
            raise ArgumentError(f'missing: "hash" is defined for murmur3, not for {recipe.name}')
        self.missing: Missing = missing
        if sys.byteorder != "little":
            raise ArgumentError("KeyHasher: this machine is big-endian, which is not supported")

    @staticmethod
    def _seed(recipe: Scheme, seed: int | None) -> int:
        if seed is None or (seed == 0 and recipe.name == "floret"):
            return recipe.default_seed
        value = checked_integer("seed", seed, 0xFFFFFFFF, least=0)
        if recipe.fixed_seed and value not in (0, recipe.default_seed):
            raise ArgumentError(f"seed: the {recipe.name} recipe has none to choose, got {value}")
        return recipe.default_seed if recipe.fixed_seed else value

    def __repr__(self) -> str:
        return (
            f"KeyHasher({self.num_embeddings}, num_hashes={self.num_hashes}, seed={self.seed},"
            f" scheme={self.scheme!r}, missing={self.missing!r})"
        )

    # ---- rows --------------------------------------------------------------------------------

    def __call__(self, keys: Any, *, feature: Any = None) -> Indices:
        """Row numbers of keys.

        Args:
            keys: see `keys.input.as_column`; L keys, or an array of any shape.  A list of tuples:
                L pairs (feature name, value), values being str, bytes and int in any mixture.
            feature: the name of the field that these keys are values of, or L names; the keys
                then are values as in pairs.  Under "sklearn" (strings only) a pair is the string
                "name=value", as there; of the other schemes only murmur3 has pairs.

        Returns:
            (L,) int64, or (L, num_hashes) when num_hashes > 1; an array's shape is kept:
            (...,) or (..., num_hashes).

        Raises:
            ArgumentError: a key of another kind, mixed kinds, a lone surrogate, a float or NaN id,
                a negative id where the scheme wants unsigned ones, a missing key under "raise".
        """
        shape, out = self._run(keys, feature, self.num_hashes, np.int64, _NO_SIGNS)
        return out.reshape(shape if self.num_hashes == 1 else (*shape, self.num_hashes))

    def signed(self, keys: Any, *, feature: Any = None) -> tuple[Indices, Signs]:
        """Row numbers and signs of scikit-learn's FeatureHasher(alternate_sign=True).

        Returns:
            indices (L,) int64 and signs (L,) int8, each -1 or 1.

        Raises:
            ArgumentError: the scheme is not "sklearn"; or as `__call__`.
        """
        if self._scheme.code != hashing.SKLEARN:
            raise ArgumentError(f'signed: only the "sklearn" scheme has signs, not {self.scheme}')
        signs: list[Signs] = []
        shape, out = self._run(keys, feature, 1, np.int64, signs)
        return out.reshape(shape), signs[0].reshape(shape)

    def hashes(self, keys: Any, *, feature: Any = None) -> npt.NDArray[Any]:
        """The hashes themselves, before they become rows.

        Returns:
            murmur3 (L, 2) uint64: (h1, h2); thinc and floret (L, 4) uint32; fasttext (L,) uint32;
            sklearn (L,) int32; spacy, fbgemm_zch, fmix64 (L,) uint64.  Missing keys, under "skip",
            give zeros.
        """
        shape, raw = self._run(keys, feature, 2, np.uint64, _NO_SIGNS)
        count, dtype = self._scheme.words
        if dtype is np.uint64:
            words = raw[:, :count]
        elif count == 4:
            words = raw.view(np.uint32)
        else:
            words = raw[:, :1].astype(np.uint32).view(dtype)
        words = np.ascontiguousarray(words)
        return words.reshape(shape if count == 1 else (*shape, count))

    def collisions(self, keys: Any, *, feature: Any = None, top: int = 10) -> Census:
        """Which of these keys share rows, how much of the traffic they are, and what would help.

        Args:
            keys, feature: as `__call__`; repeated keys are traffic.
            top: how many of the worst pairs to name.

        Returns:
            a `census.Census`; keys missing under "skip" are counted apart.

        Keys are told apart by 128-bit hashes, so the counts are exact but for an accident of rate
        U^2 / 2^129.
        """
        from sparse_embed.keys.file_census import census_of_keys

        return census_of_keys(self, keys, feature, top)

    def _run(
        self, keys: Any, feature: Any, width: int, dtype: Any, signs: Any
    ) -> tuple[tuple[int, ...], npt.NDArray[Any]]:
        """Shape of the keys, and (L, width) rows or raw words; signs are appended to a list."""
        guard_fork()
        if feature is None and holds_pairs(keys):
            return self._run_pairs(keys, width, dtype, signs)
        if feature is not None and self._scheme.code == hashing.SKLEARN:
            keys, feature = self._named_values(keys, feature), None
        column = as_column(keys)
        out = np.empty((column.size, width), dtype)
        marks = _NO_SIGNS
        if isinstance(signs, list):
            marks = np.ones(column.size, np.int8)
            signs.append(marks)
        self._fill(column, out, marks, self._states(feature, column.size))
        return column.shape, out

    def _run_pairs(
        self, keys: Any, width: int, dtype: Any, signs: Any
    ) -> tuple[tuple[int, ...], npt.NDArray[Any]]:
        names, groups = split_pairs(keys)
        if self.missing == "raise":
            for position, (name, value) in enumerate(keys):
                if is_missing(value):
                    raise ArgumentError(f"keys[{position}]: the value of {name!r} is missing")
        if self._scheme.code == hashing.SKLEARN:
            return self._run([value for _, value in keys], names, width, dtype, signs)
        out = np.empty((len(names), width), dtype)
        for positions, values in groups:
            named = [names[position] for position in positions]
            try:
                out[positions] = self._run(values, named, width, dtype, signs)[1]
            except ArgumentError as error:
                kind = type(values[0]).__name__
                raise ArgumentError(f"of the pairs with {kind} values, {error}") from None
        return (len(names),), out

    @staticmethod
    def _named_values(values: Any, feature: Any) -> list[str | None]:
        """scikit-learn's "name=value" strings."""
        listed = list(values)
        names = [feature] * len(listed) if isinstance(feature, str) else list(feature)
        if len(names) != len(listed):
            raise ArgumentError(f"feature: got {len(names)} names for {len(listed)} keys")
        for position, value in enumerate(listed):
            if not isinstance(value, str) and not is_missing(value):
                raise no_key("keys", position, value, "str (scikit-learn counts a number instead)")
        return [
            None if is_missing(value) else f"{name}={value}"
            for name, value in zip(names, listed, strict=True)
        ]

    # ---- one column --------------------------------------------------------------------------

    def _states(self, feature: Any, size: int) -> States:
        """(1, 2) or (L, 2): where MurmurHash3 starts, for each key where features differ."""
        if feature is None:
            return np.full((1, 2), self.seed, np.uint64)
        if self._scheme.code != hashing.MURMUR3:
            raise ArgumentError(f"feature: the {self.scheme} recipe has no (feature, value) pairs")
        names = [feature] if isinstance(feature, str) else feature
        try:
            states: States = KeyHasher(1, seed=self.seed).hashes(names).reshape(-1, 2)
        except ArgumentError as error:
            raise ArgumentError(f"feature: of its names, {error}") from None
        if not isinstance(feature, str) and len(states) != size:
            raise ArgumentError(f"feature: got {len(states)} names for {size} keys")
        return states

    def _fill(self, column: KeyColumn, out: npt.NDArray[Any], signs: Signs, states: States) -> None:
        done = 0
        for chunk in column.chunks:
            end = done + len(chunk)
            part = states if len(states) == 1 else states[done:end]
            self._hash_chunk(chunk, done, part, out[done:end], signs[done:end])
            done = end

    def _hash_chunk(
        self,
        chunk: Chunk,
        position: int,
        states: States,
        out: npt.NDArray[Any],
        signs: Signs,
    ) -> None:
        missing = chunk.missing
        if missing is not None and not missing.any():
            missing = None
        if missing is not None and self.missing == "raise":
            raise ArgumentError(
                f"keys[{position + first_true(missing)}] is missing (None, NaN or null):"
                ' drop it, or build the hasher with missing="skip" (row -1) or missing="hash"'
            )
        if missing is None or not missing.all():
            self._hash_present(chunk, position, states, out, signs)
        if missing is not None:
            if self.missing == "skip":
                out[missing] = MISSING_INDEX if out.dtype == np.int64 else 0
                if len(signs):
                    signs[missing] = 1
            else:
                out[missing] = self._missing_rows(
                    states if len(states) == 1 else states[missing], out
                )

    def _hash_present(
        self,
        chunk: Chunk,
        position: int,
        states: States,
        out: npt.NDArray[Any],
        signs: Signs,
    ) -> None:
        output = hashing.ONE_ROW if out.shape[1] == 1 else hashing.ROWS
        if out.dtype == np.uint64:
            output = hashing.RAW
        if isinstance(chunk, Coded) and len(states) > 1:
            chunk = spread(chunk)
        if isinstance(chunk, Coded):
            distinct = np.empty((len(chunk.distinct), out.shape[1]), out.dtype)
            marks = np.empty(len(distinct) if len(signs) else 0, np.int8)
            self._hash_chunk(chunk.distinct, position, states, distinct, marks)
            out[:] = distinct[chunk.codes]
            if len(signs):
                signs[:] = marks[chunk.codes]
            return
        rows = np.uint64(self.num_embeddings)
        if isinstance(chunk, Strings):
            if not self._scheme.strings:
                raise ArgumentError(f"keys: the {self.scheme} recipe hashes integers, got strings")
            layout = hashing.SPANS if chunk.spans else hashing.OFFSETS
            kernel = hashing.hash_strings_cpu(self._scheme.code, layout, output)
            kernel(chunk.base, chunk.starts, chunk.lengths, states, rows, out, signs, new_counter())
            return
        self._check_ids(chunk, position)
        kernel = hashing.hash_ids_cpu(self._scheme.code, output)
        kernel(chunk.values, states, rows, out, new_counter())

    def _check_ids(self, ids: Ids, position: int) -> None:
        if not self._scheme.ids:
            raise ArgumentError(f"keys: the {self.scheme} recipe hashes strings, got integers")
        if ids.signed and not self._scheme.signed:
            negative = ids.values.view(np.int64) < 0
            if ids.missing is not None:
                negative &= ~ids.missing
            if negative.any():
                at = first_true(negative)
                raise ArgumentError(
                    f"keys[{position + at}] = {ids.values.view(np.int64)[at]}: the {self.scheme}"
                    " recipe hashes unsigned ids; view them as uint64 if you mean the bit pattern"
                )

    def _missing_rows(self, states: States, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rows (or raw words) of missing keys, one for each state."""
        n = len(states)
        rows = np.empty((n, out.shape[1]), out.dtype)
        nothing = Strings(0, np.zeros(n + 1, np.int64), EMPTY_LENGTHS, None)
        self._hash_present(nothing, 0, states ^ _ALL_ONES, rows, _NO_SIGNS)
        return rows


def checked_integer(name: str, value: object, most: int, least: int = 1) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentError(f"{name}: expected an integer, got {value!r}")
    number = operator.index(value)
    if not least <= number <= most:
        raise ArgumentError(f"{name}: expected {least} to {most}, got {number}")
    return number
