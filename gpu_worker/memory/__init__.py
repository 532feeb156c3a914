"""Memory that clients share with the worker: opened, read and written without trusting its owner."""
