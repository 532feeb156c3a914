"""Where leases go, decided purely: filter, coarse score, one stable order."""
