"""A site's part in sums of which nobody sees the terms: gradients, noise, masks, keys."""
