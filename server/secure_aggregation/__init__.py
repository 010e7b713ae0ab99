"""The server's part in sums of which it does not see the terms."""
