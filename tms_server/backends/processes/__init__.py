"""Workers as supervised process pairs on this machine."""
