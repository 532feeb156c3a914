"""One module for each generated page: `text()` answers it whole."""
