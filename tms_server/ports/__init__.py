"""What services and reconcilers need from the outside, as protocols; adapters implement them."""
