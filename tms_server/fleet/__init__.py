"""What the fleet should look like against what it is, decided purely."""
