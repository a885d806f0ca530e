"""Texts to words between spaces, ready for `WordNgramHasher` and `NgramHasher`.

    normalize("Don't <br />PANIC!")  ->  "don ' t  panic ! "
    tokenize("Don't PANIC!")         ->  ["don", "'", "t", "panic", "!"]

Lower case, HTML line breaks out, a space on each side of . ! ? , ' / ( ) " ; : and the other signs
that cling to words: the preprocessing of fastText's classification examples and tutorial.
"""

from __future__ import annotations

_BREAKS = ("<br />", "<br/>", "<br>")
_SIGNS = (".", ",", "'", '"', "!", "?", "(", ")", "/", ";", ":", "*", "[", "]", "“", "”", "’", "…")


def normalize(text: str) -> str:
    """Lower-case words and signs apart, separated by white space; other bytes stay as they are."""
    text = text.lower()
    if "<" in text:
        for tag in _BREAKS:
            text = text.replace(tag, " ")
    for sign in _SIGNS:
        if sign in text:
            text = text.replace(sign, f" {sign} ")
    return text


def tokenize(text: str) -> list[str]:
    """The words and signs of a text."""
    return normalize(text).split()
