"""Life of a lease, decided purely: the transition table, deadlines, use."""
