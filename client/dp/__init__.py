"""Differentially private training of one round at one site."""
