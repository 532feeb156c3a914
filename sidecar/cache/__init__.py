"""The content-addressed cache of a node, shared by all sidecars on it."""
