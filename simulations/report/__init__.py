"""What a finished run says of itself: its page and its model card."""
