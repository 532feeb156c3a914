"""Figures, each beside a reference taken in the same run. Never asserted in tests."""
