"""The fronts of a worker beside those of other servers: one model, the same clients, one run."""
