"""Synthetic images at the site: generators, the images they make, what images are worth."""
