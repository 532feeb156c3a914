"""TMS on Kubernetes: a cluster walk-through, a job that leases a model, a lease that grows, and the demo of it all."""
