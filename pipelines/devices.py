"""Where does a worker of a pool compute, and how exactly?"""

from __future__ import annotations

import torch

from diffusion.precision import allow_tf32
from orchestrator.step import Resources


def worker_device(resources: Resources) -> str:
    """The device this worker was given: the GPU that Ray shows it alone, or the CPU, with so many threads.

    float32 is float32 on it.
    """
    torch.set_num_threads(resources.cpus_per_worker)
    allow_tf32(False)
    return "cuda" if resources.gpus_per_worker else "cpu"
