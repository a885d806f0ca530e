"""Tables in GPU memory: says by name what is missing where there is none."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Case, Settings

ABOUT = "tables on a GPU"


def missing() -> str | None:
    """Why there is nothing to time; None when there is a GPU that can be used."""
    try:
        from numba import cuda
    except ImportError as error:
        return f"numba's CUDA target cannot be imported ({error})"
    try:
        if not cuda.is_available():
            return "no CUDA GPU, or no driver, on this machine"
    except Exception as error:  # a broken driver may raise anything
        return f"CUDA cannot start ({type(error).__name__}: {error})"
    import sparse_embed as se
    from sparse_embed.errors import SparseEmbedError

    try:
        se.EmbeddingTable.create(None, num_embeddings=1, embedding_dim=4, device="cuda").close()
    except SparseEmbedError as error:
        return str(error)
    return None


def run(settings: Settings) -> Iterator[Case]:
    reason = missing()
    if reason is not None:
        yield Case("lookup and step on a GPU", absent={"sparse_embed on a GPU": reason})
