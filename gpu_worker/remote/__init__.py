"""Several front processes and one engine process: the border carried through shared memory."""
