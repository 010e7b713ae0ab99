"""Setting up a hospital: keys, files and units, and a doctor for them."""
