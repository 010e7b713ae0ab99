"""The processes that simulated hospitals live in."""
