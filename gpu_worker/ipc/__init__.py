"""Messages between two processes through memory that they share."""
