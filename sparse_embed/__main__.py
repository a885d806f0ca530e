"""`python -m sparse_embed` is `sparse-embed`."""

from sparse_embed.cli import main

if __name__ == "__main__":
    main()
