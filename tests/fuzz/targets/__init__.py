"""What is fuzzed: each module has a NAME, `fuzz`, which raises where a promise is broken, and `seeds`."""
