"""What makes images: the architectures that both sides agree on, and how they are sampled."""
