"""What TMS costs on Kubernetes, measured on a test cluster: activation beside a plain Deployment, a great fleet, healing."""
