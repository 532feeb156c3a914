"""What runs workers."""
