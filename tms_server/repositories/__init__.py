"""Model repositories: from a URI to the exact files it means."""
