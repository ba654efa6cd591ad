"""Training: the loop, its checkpoints, and what it chooses by itself."""
