"""Events, accountants, calibration and the ledger: privacy arithmetic, without torch."""
