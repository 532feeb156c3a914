"""Use cases: one function for each call of the API."""
