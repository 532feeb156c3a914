"""Verified fakes and builders: imported by tests only, held to the same contract suites as the real adapters."""
