"""The wire: all that two programs of this repository share."""
