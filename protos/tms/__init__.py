"""Package of generated stubs."""
