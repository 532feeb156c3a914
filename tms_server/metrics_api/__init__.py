"""external.metrics.k8s.io, served by the control plane itself: an aggregated API beside the Kubernetes API server's own."""
