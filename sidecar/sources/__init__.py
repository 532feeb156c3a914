"""The stores that models are read from, one module each, behind the one port of `port`."""
