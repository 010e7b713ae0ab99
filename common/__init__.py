"""What both sides must agree on: configuration, wire format, models, metrics, privacy."""
