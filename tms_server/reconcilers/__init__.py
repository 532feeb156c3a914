"""Loops that bring the world to what is stored: load, process, apply."""
