"""A study becomes a cohort: images, labels and whose they are."""
