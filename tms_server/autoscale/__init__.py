"""How big a lease should be, decided purely: what its workers did of late, and how many of them that asks for."""
