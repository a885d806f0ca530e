"""The options of WordVectors, checked: one dict that also goes into the store."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_embed._validate import as_integer
from sparse_embed.errors import ArgumentError

_LEAST = {
    "embedding_dim": 1,
    "window": 1,
    "min_count": 1,
    "negative": 1,
    "epochs": 1,
    "minn": 0,
    "maxn": 0,
    "num_buckets": 1,
    "num_hashes": 1,
    "seed": 0,
}
_MOST = {"embedding_dim": 65536, "window": 1 << 20, "num_buckets": 1 << 32, "num_hashes": 4}


# A batch of more tokens learns less from each (kept at the quality of pair-by-pair updates up to
# 4,096 with the clip, not at 8,192), and a text has to be cut into enough of them.
_STEPS, _SMALLEST, _LARGEST = 500, 256, 4096


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The same options as plain numbers and strings.

    Raises:
        ArgumentError: names the option, what was found and what was wanted.
    """
    checked = dict(options)
    for name, least in _LEAST.items():
        checked[name] = _integer(name, options[name], least, _MOST.get(name))
    checked["sg"] = _flag("sg", options["sg"])
    if options["max_vocab"] is not None:
        checked["max_vocab"] = _integer("max_vocab", options["max_vocab"], 2, None)
    if options["batch_size"] is not None:
        checked["batch_size"] = _integer("batch_size", options["batch_size"], 2, None)
    checked["ns_exponent"] = _number("ns_exponent", options["ns_exponent"], -10.0)
    checked["sample"] = _number("sample", options["sample"], 0.0)
    if options["scheme"] not in ("fasttext", "floret"):
        raise ArgumentError(f'scheme: expected "fasttext" or "floret", got {options["scheme"]!r}')
    if checked["maxn"] and not 1 <= checked["minn"] <= checked["maxn"]:
        raise ArgumentError(
            f"minn, maxn: expected 1 <= minn <= maxn, or maxn=0 for whole words, got"
            f" {checked['minn']} and {checked['maxn']}"
        )
    if options["scheme"] == "fasttext" and checked["num_hashes"] != 1:
        raise ArgumentError(f'num_hashes: scheme "fasttext" has one, got {checked["num_hashes"]}')
    return checked


def batch_tokens(options: dict[str, Any], tokens: int) -> int:
    """Tokens of a batch for a text of this many."""
    given = options["batch_size"]
    return int(given) if given is not None else min(max(tokens // _STEPS, _SMALLEST), _LARGEST)


def _integer(name: str, value: Any, least: int, most: int | None) -> int:
    number = as_integer(name, value)
    if number < least or (most is not None and number > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ArgumentError(f"{name}: expected {wanted}, got {number}")
    return number


def _number(name: str, value: Any, least: float) -> float:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not least <= value < np.inf:
        raise ArgumentError(f"{name}: expected a finite number >= {least:g}, got {value!r}")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | int | np.bool_ | np.integer) or value not in (0, 1):
        raise ArgumentError(f"{name}: expected True or False (1 or 0), got {value!r}")
    return bool(value)
