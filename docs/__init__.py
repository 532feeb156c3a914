"""The documentation; `docs.generate` writes the reference pages from their sources."""
