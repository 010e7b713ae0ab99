"""Measured privacy: attacks on the training as it is, and what they prove about epsilon."""
