"""The container images, and the parts of the lock file that each needs."""
