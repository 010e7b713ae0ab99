"""``fedward compare``: centralized, federated and single-site training at equal privacy."""
