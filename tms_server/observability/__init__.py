"""How the control plane shows itself: logs and metrics. It decides nothing."""
