"""The control plane: leases, placement and the fleet of workers."""
