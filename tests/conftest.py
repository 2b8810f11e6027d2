"""What holds for every test: one thread, reproducible Hypothesis, no deadline."""

import os

# Before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("suite")
