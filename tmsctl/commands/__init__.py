"""One module for each noun; each holds the commands of that noun and nothing of how they are sent or printed."""
