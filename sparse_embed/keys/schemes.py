"""The hash recipes by name: whose they are, what they take, how a hash becomes rows.

| scheme     | keys        | hash                                         | rows of a key         |
|------------|-------------|----------------------------------------------|-----------------------|
| murmur3    | str, int    | MurmurHash3_x64_128; ints as 8 LE bytes      | k: word_j * E >> 64   |
| thinc      | uint64, str | x64_128 of 8 LE bytes; str by spaCy id first | 1 to 4: word_j % E    |
| floret     | str         | x64_128 of the bytes, seed 2166136261        | 1 to 4: word_j % E    |
| fasttext   | str         | 32-bit FNV-1a over sign-extended bytes       | 1: h % E              |
| sklearn    | str         | MurmurHash3_x86_32, signed                   | 1: abs(h) % E; sign   |
| spacy      | str         | MurmurHash64A, seed 1; "" is 0               | 1: h % E              |
| fbgemm_zch | int         | x64_128 of (key, 0), 16 bytes; h1 ^ h2       | 1: h % E              |
| fmix64     | uint64      | MurmurHash3's finaliser (HierarchicalKV)     | 1: h % E              |

Sources: SMHasher and mmh3; thinc `numpy_ops.pyx`; floret and fastText `src/dictionary.cc`;
scikit-learn `_hashing_fast.pyx`; spaCy `strings.pyx`; FBGEMM `faster_hash_ops/common_utils.cuh`;
HierarchicalKV `types.cuh`.

All but murmur3 are there to find the rows of other people's tables; for a new table take murmur3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels import hashing


@dataclass(frozen=True, slots=True)
class Scheme:
    """One recipe.

    Attributes:
        code: its constant in `kernels.hashing`.
        strings, ids: which keys it hashes; `signed` whether negative ids are among them.
        max_hashes: most rows a key can have (0: no limit).
        default_seed: used when the user names none.
        fixed_seed: the recipe takes no other.
        max_embeddings: largest table that the hash can reach.
        words: how `KeyHasher.hashes` shows one hash: (count, dtype).
    """

    name: str
    code: int
    strings: bool
    ids: bool
    signed: bool
    max_hashes: int
    default_seed: int
    fixed_seed: bool
    max_embeddings: int
    words: tuple[int, type[np.generic]]


_WIDE = 1 << 63
_NARROW = 1 << 32
_FLORET_SEED = 2166136261

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("murmur3", hashing.MURMUR3, True, True, True, 0, 0, False, _WIDE, (2, np.uint64)),
        Scheme("thinc", hashing.THINC, True, True, False, 4, 0, False, _NARROW, (4, np.uint32)),
        Scheme(
            "floret", hashing.FLORET, True, False, False, 4, _FLORET_SEED, False, _NARROW,
            (4, np.uint32),
        ),
        Scheme(
            "fasttext", hashing.FASTTEXT, True, False, False, 1, 0, True, _NARROW, (1, np.uint32)
        ),
        Scheme(
            "sklearn", hashing.SKLEARN, True, False, False, 1, 0, False, (1 << 31) - 1,
            (1, np.int32),
        ),
        Scheme("spacy", hashing.SPACY, True, False, False, 1, 1, True, _WIDE, (1, np.uint64)),
        Scheme("fbgemm_zch", hashing.ZCH, False, True, True, 1, 0, True, _WIDE, (1, np.uint64)),
        Scheme("fmix64", hashing.FMIX64, False, True, False, 1, 0, True, _WIDE, (1, np.uint64)),
    )
}  # fmt: skip


def find_scheme(name: object) -> Scheme:
    """The scheme of this name.

    Raises:
        ArgumentError: there is none.
    """
    scheme = SCHEMES.get(name) if isinstance(name, str) else None
    if scheme is None:
        known = ", ".join(SCHEMES)
        raise ArgumentError(f"scheme: expected one of {known}, got {name!r}")
    return scheme
