"""What hospitals' ledgers say."""
