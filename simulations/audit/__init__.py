"""Measured privacy beside claimed privacy."""
