"""One torch thread: the tests' networks are too small to gain from more, and waiting for the others costs seconds."""

import torch

torch.set_num_threads(1)
