"""The picture of a census: clean traffic against rows, one curve per num_hashes."""

from __future__ import annotations

import os

import numpy as np

from sparse_embed.keys.census import HASHES, Census, expected_clash, require_matplotlib


def plot(census: Census, path: str | os.PathLike[str]) -> None:
    """Draw into an image file (png, svg, pdf: by its ending).

    Lines: the ideal hash.  Dots: counted on these keys.  The cross: this table.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = np.geomspace(max(2, census.num_embeddings / 16), 16 * census.num_embeddings, 200)
    for k in HASHES:
        clean = [100 * (1 - expected_clash(census.distinct, round(size), k)) for size in sizes]
        (line,) = axes.plot(sizes, clean, label=f"num_hashes {k}")
        counted = [
            (cell.num_embeddings, 100 * cell.clean_traffic)
            for cell in census.grid
            if cell.num_hashes == k and cell.clean_traffic is not None
        ]
        if counted:
            axes.plot(*zip(*counted, strict=True), "o", color=line.get_color(), markersize=4)
    here = 100 * (1 - census.clashing_traffic)
    axes.plot([census.num_embeddings], [here], "kx", markersize=10, label="this table")
    axes.set_xscale("log")
    axes.set_xlabel("rows of the table")
    axes.set_ylabel("traffic with a row of its own, %")
    axes.set_title(f"{census.distinct:,} distinct keys, {census.keys:,} in all")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
