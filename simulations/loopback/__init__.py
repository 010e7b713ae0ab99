"""A consortium and its hospitals on this machine alone, with every process that they have."""
