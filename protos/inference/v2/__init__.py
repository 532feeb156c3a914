"""Generated stubs; see the sources beside them."""
