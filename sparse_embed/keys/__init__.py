"""From raw keys (strings, 64-bit ids, words never seen before) to row numbers.

hasher.py        KeyHasher: one key, one row or several
ngrams.py        NgramHasher: a word as the rows of its character n-grams
word_ngrams.py   WordNgramHasher: a text as the rows of its words and word n-grams
schemes.py       which hash, whose model: selected by name
input.py         lists and NumPy arrays to columns; arrow.py: Arrow, pandas, polars
pairs.py         (feature name, value) pairs that share one table without clashing
census.py        how often keys meet in a row, expected and observed; file_census.py: of a file
"""

from sparse_embed.keys.census import Census
from sparse_embed.keys.hasher import KeyHasher
from sparse_embed.keys.ngrams import NgramHasher, NgramVocabulary
from sparse_embed.keys.word_ngrams import WordNgramHasher

__all__ = ["Census", "KeyHasher", "NgramHasher", "NgramVocabulary", "WordNgramHasher"]
