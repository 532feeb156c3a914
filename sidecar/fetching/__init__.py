"""Brings the files of a model from their store into the cache."""
