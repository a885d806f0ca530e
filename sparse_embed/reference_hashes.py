"""Every hash in plain Python integers: the specification that the kernels are tested against.

Slow on purpose, and independent of Numba, NumPy and mmh3: each function is the published algorithm
line by line.  The functions named `*rows` say how a hash becomes row numbers.
"""

from __future__ import annotations

_M32 = 0xFFFFFFFF
_M64 = 0xFFFFFFFFFFFFFFFF


def _rotl(x: int, r: int, bits: int) -> int:
    return ((x << r) | (x >> (bits - r))) & ((1 << bits) - 1)


def fmix64(h: int) -> int:
    """MurmurHash3's 64-bit finaliser; HierarchicalKV's hash of a key."""
    h = ((h ^ (h >> 33)) * 0xFF51AFD7ED558CCD) & _M64
    h = ((h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53) & _M64
    return h ^ (h >> 33)


def murmur3_x64_128(data: bytes, seed: int | tuple[int, int] = 0) -> tuple[int, int]:
    """As `mmh3.hash64(data, seed, signed=False)`; a pair of seeds starts h1 and h2 apart."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1, h2 = seed if isinstance(seed, tuple) else (seed, seed)
    whole = len(data) // 16 * 16
    for at in range(0, whole, 16):
        k1 = int.from_bytes(data[at : at + 8], "little")
        k2 = int.from_bytes(data[at + 8 : at + 16], "little")
        h1 ^= _rotl(k1 * c1 & _M64, 31, 64) * c2 & _M64
        h1 = ((_rotl(h1, 27, 64) + h2) * 5 + 0x52DCE729) & _M64
        h2 ^= _rotl(k2 * c2 & _M64, 33, 64) * c1 & _M64
        h2 = ((_rotl(h2, 31, 64) + h1) * 5 + 0x38495AB5) & _M64
    k1 = int.from_bytes(data[whole : whole + 8], "little")
    k2 = int.from_bytes(data[whole + 8 :], "little")
    h2 ^= _rotl(k2 * c2 & _M64, 33, 64) * c1 & _M64
    h1 ^= _rotl(k1 * c1 & _M64, 31, 64) * c2 & _M64
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = (h1 + h2) & _M64
    h2 = (h2 + h1) & _M64
    h1, h2 = fmix64(h1), fmix64(h2)
    h1 = (h1 + h2) & _M64
    return h1, (h2 + h1) & _M64


def murmur3_x86_32(data: bytes, seed: int = 0) -> int:
    """As `mmh3.hash(data, seed, signed=False)`."""
    c1, c2 = 0xCC9E2D51, 0x1B873593
    h = seed
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little")
        h ^= _rotl(k * c1 & _M32, 15, 32) * c2 & _M32
        h = (_rotl(h, 13, 32) * 5 + 0xE6546B64) & _M32
    k = int.from_bytes(data[whole:], "little")
    h ^= _rotl(k * c1 & _M32, 15, 32) * c2 & _M32
    h ^= len(data)
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _M32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _M32
    return h ^ (h >> 16)


def murmur64a(data: bytes, seed: int) -> int:
    """MurmurHash64A."""
    m = 0xC6A4A7935BD1E995
    h = (seed ^ (len(data) * m)) & _M64
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        k = int.from_bytes(data[at : at + 8], "little") * m & _M64
        h = ((h ^ ((k ^ (k >> 47)) * m & _M64)) * m) & _M64
    if whole < len(data):
        h = ((h ^ int.from_bytes(data[whole:], "little")) * m) & _M64
    h = ((h ^ (h >> 47)) * m) & _M64
    return h ^ (h >> 47)


def fasttext_hash(data: bytes) -> int:
    """fastText's `Dictionary::hash`: FNV-1a, 32 bits, bytes sign-extended."""
    h = 2166136261
    for byte in data:
        h = ((h ^ (byte if byte < 0x80 else byte | 0xFFFFFF00)) * 16777619) & _M32
    return h


def spacy_id(text: str) -> int:
    """spaCy's `strings.hash_string`, and 0 for the empty string as `StringStore` has it."""
    return murmur64a(text.encode(), 1) if text else 0


def fbgemm_zch(key: int) -> int:
    """FBGEMM's `murmur_hash3_2x64(key, 0, 0)`: one 16-byte block, h1 ^ h2."""
    h1, h2 = murmur3_x64_128((key & _M64).to_bytes(8, "little") + bytes(8))
    return h1 ^ h2


def id_bytes(key: int) -> bytes:
    """The 8 bytes of an integer key: two's complement, little-endian."""
    return (key & _M64).to_bytes(8, "little")


def halves(h1: int, h2: int) -> tuple[int, int, int, int]:
    """The four 32-bit words of thinc and floret."""
    return h1 & _M32, h1 >> 32, h2 & _M32, h2 >> 32


def rows(
    data: bytes, num_embeddings: int, num_hashes: int = 1, seed: int | tuple[int, int] = 0
) -> list[int]:
    """Rows of a key under the default scheme (the recipe of `sparse_embed.keys`)."""
    h1, h2 = murmur3_x64_128(data, seed)
    words = [h1] + [fmix64((h1 + j * (h2 | 1)) & _M64) for j in range(1, num_hashes)]
    return [(word * num_embeddings) >> 64 for word in words]


def sklearn_row(data: bytes, num_embeddings: int, seed: int = 0) -> tuple[int, int]:
    """(row, sign) of scikit-learn's FeatureHasher."""
    h = murmur3_x86_32(data, seed)
    signed = h - (1 << 32) if h >= 1 << 31 else h
    return abs(signed) % num_embeddings, 1 if signed >= 0 else -1


def characters(text: bytes) -> list[bytes]:
    """A byte and the UTF-8 continuation bytes behind it, valid or not, is one character."""
    found: list[bytes] = []
    for byte in text:
        if found and byte & 0xC0 == 0x80:
            found[-1] += bytes([byte])
        else:
            found.append(bytes([byte]))
    return found


def ngrams(word: bytes, minn: int, maxn: int) -> list[bytes]:
    """The character n-grams of `<word>` in the order of fastText's `computeSubwords`.

    At each start from left to right, n = 1, 2, .. maxn; those with n >= minn, except a single
    character at either end.  "</s>" has none.
    """
    if word == b"</s>":
        return []
    text = characters(b"<" + word + b">")
    found = []
    for begin in range(len(text)):
        for n in range(1, maxn + 1):
            end = begin + n
            if end > len(text):
                break
            if n >= minn and not (n == 1 and (begin == 0 or end == len(text))):
                found.append(b"".join(text[begin:end]))
    return found


def fasttext_rows(word: bytes, num_buckets: int, minn: int = 3, maxn: int = 6) -> list[int]:
    """Rows of a word's n-grams in fastText's bucket table."""
    return [fasttext_hash(gram) % num_buckets for gram in ngrams(word, minn, maxn)]


def floret_rows(
    word: bytes,
    num_buckets: int,
    minn: int = 3,
    maxn: int = 6,
    num_hashes: int = 1,
    seed: int = 2166136261,
) -> list[int]:
    """Rows of a word in floret's table: the whole `<word>`, then its n-grams."""
    if word == b"</s>":
        return []
    found: list[int] = []
    for gram in [b"<" + word + b">", *ngrams(word, minn, maxn)]:
        words = halves(*murmur3_x64_128(gram, seed))
        found.extend(w % num_buckets for w in words[:num_hashes])
    return found


def tokens(text: bytes) -> list[bytes]:
    """fastText's `readWord`: what lies between ASCII whitespace and NUL."""
    return text.replace(b"\0", b" ").split()


def word_ngram_rows(
    words: list[bytes], num_buckets: int, max_n: int, scheme: str = "murmur3", seed: int = 0
) -> list[int]:
    """Rows of a text: its words, then the 2- to max_n-grams that start at each of them.

    fasttext: `Dictionary::addWordNgrams`, on sign-extended 32-bit hashes.
    """
    if scheme == "fasttext":
        hashes = [h - (1 << 32) if h >> 31 else h for h in map(fasttext_hash, words)]
        found = [(h & _M32) % num_buckets for h in hashes]
    else:
        hashes = [murmur3_x64_128(word, seed)[0] for word in words]
        found = [(h * num_buckets) >> 64 for h in hashes]
    for i, h in enumerate(hashes):
        for following in hashes[i + 1 : i + max_n]:
            if scheme == "fasttext":
                h = (h * 116049371 + following) & _M64
                found.append(h % num_buckets)
            else:
                h = fmix64((h * 0x9E3779B97F4A7C15 + following) & _M64)
                found.append((h * num_buckets) >> 64)
    return found
