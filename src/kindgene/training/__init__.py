"""Training: the loop, what it draws at random, what it keeps on disk."""
