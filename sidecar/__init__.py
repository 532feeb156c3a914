"""The agent beside a worker: fetches, loads, reports."""
