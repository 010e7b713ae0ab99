"""Sums over hospitals of which nobody sees the terms: the protocol, and the noise inside it."""
