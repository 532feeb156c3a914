"""Models written for Triton's Python backend, each instance in a process of its own."""
