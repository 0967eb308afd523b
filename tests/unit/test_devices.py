"""What a worker of the pipeline sets before it computes."""

from __future__ import annotations

import torch

from diffusion.precision import allow_tf32
from orchestrator.step import Resources
from pipelines.devices import worker_device


def test_float32_on_a_gpu_is_float32_where_the_pipeline_runs() -> None:
    allow_tf32(True)
    worker_device(Resources(cpus_per_worker=torch.get_num_threads()))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
