"""The V2 inference server."""
