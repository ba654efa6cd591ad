"""Training: what it reads, the loop, validation, checkpoints, and what it chooses by itself."""
