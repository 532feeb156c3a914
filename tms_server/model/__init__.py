"""Values of the control plane: what a lease, a pool, a worker group are. No behaviour beyond their own consistency."""
