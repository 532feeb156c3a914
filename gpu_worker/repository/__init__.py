"""Model repositories in Triton's layout: what is there, and what its configuration says."""
