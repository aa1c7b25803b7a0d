"""Runs: the tracking store, where a result came from, and what is printed on the way."""
