"""What services and reconcilers both stand on: what is known in memory only, and the units of work that both perform."""
