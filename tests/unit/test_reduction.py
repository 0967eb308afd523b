"""Does a training take the same steps, however its batch is shared: the same bits, or but for rounding?"""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from diffusion.train_config import AllReduceConfig, LossScaleConfig, TrainConfig, TreeConfig
from tests.small_steps import BATCH, IMPORTANCE, assert_equal_tensors, fresh_state, train


def worker(rank, world_size, store, out, settings):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    state = fresh_state(**settings)
    module = state.model
    if isinstance(state.config.reduction, AllReduceConfig):
        module = nn.parallel.DistributedDataParallel(state.model)
    share = BATCH // world_size
    measured = train(state, range(8), module=module, rows=torch.arange(rank * share, (rank + 1) * share))
    kept = [(m.means, m.quartiles, m.grad_norm) for m in measured]
    torch.save((state.tensors(), state.meta(), kept), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def trained_by(workers, folder, **settings):
    """What every worker of a training holds at its end: tensors, meta data, and what its steps measured."""
    folder.mkdir()
    arguments = (workers, folder / "store", folder, settings)
    torch.multiprocessing.spawn(worker, args=arguments, nprocs=workers)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(workers)]


@pytest.mark.parametrize(("precision", "numbers"), [("float32", (2, 4)), ("fp16", (2,))])
def test_one_two_and_four_workers_give_the_same_bits(tmp_path, precision, numbers):
    """Weights, averages, optimizer, sampler, metrics: dropout and importance sampling of t included."""
    settings = {"timesteps": IMPORTANCE, "dropout": 0.3, "reduction": TreeConfig(shards=4), "precision": precision}
    (alone,) = trained_by(1, tmp_path / "1", **settings)
    for workers in numbers:
        for tensors, meta, measured in trained_by(workers, tmp_path / str(workers), **settings):
            assert_equal_tensors(tensors, alone[0])
            assert meta == alone[1]
            for theirs, ours in zip(measured, alone[2], strict=True):
                assert all(map(torch.equal, theirs, ours))


def test_the_tree_takes_the_steps_of_one_whole_batch(tmp_path):
    settings = {"timesteps": IMPORTANCE, "eps": 1e-3}
    cut, whole = (fresh_state(reduction=TreeConfig(shards=shards), **settings) for shards in (8, 1))
    for ours, theirs in zip(train(cut, range(8)), train(whole, range(8)), strict=True):
        torch.testing.assert_close(ours.means, theirs.means, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.quartiles, theirs.quartiles, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.grad_norm, theirs.grad_norm, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cut.tensors(), whole.tensors(), rtol=1e-3, atol=1e-5)


def test_ddp_takes_the_steps_of_one_worker_but_for_rounding(tmp_path):
    settings = {"timesteps": IMPORTANCE, "eps": 1e-3}
    first, second = trained_by(2, tmp_path / "2", reduction=AllReduceConfig(microbatch=2), **settings)
    assert_equal_tensors(first[0], second[0])
    assert first[1] == second[1]
    alone = fresh_state(reduction=AllReduceConfig(), **settings)
    for (theirs, quartiles, grad_norm), ours in zip(first[2], train(alone, range(8)), strict=True):
        torch.testing.assert_close(theirs, ours.means, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(quartiles, ours.quartiles, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad_norm, ours.grad_norm, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first[0], alone.tensors(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_microbatches_average_and_the_published_sum_is_as_many_times_larger(size):
    def grad_norm(**reduction):
        return train(fresh_state(reduction=AllReduceConfig(**reduction)), [0])[0].grad_norm

    whole = grad_norm()
    torch.testing.assert_close(grad_norm(microbatch=size), whole, rtol=1e-4, atol=0)
    published = grad_norm(microbatch=size, accumulation="sum")
    torch.testing.assert_close(published, whole * BATCH / size, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TreeConfig(shards=3), "shards=3: must be a power of two"),
        (lambda: AllReduceConfig(microbatch=0), "microbatch=0"),
        (lambda: AllReduceConfig(accumulation="sum"), "changes nothing without a train.reduction.microbatch"),
        (lambda: LossScaleConfig(initial_log2=1.0, floor_log2=2.0), "not below floor_log2=2"),
        (lambda: TrainConfig(images=1280).check_workers(8), "8 workers: must be a power of two up to"),
        (lambda: TrainConfig(images=1280).check_workers(3), "3 workers: must be a power of two"),
        (lambda: TrainConfig(images=1280, reduction=AllReduceConfig()).check_workers(3), "must be a multiple"),
        (lambda: TrainConfig(images=1280, reduction=AllReduceConfig(microbatch=5)).check_workers(2), "divide the 64"),
    ],
)
def test_workers_and_parts_of_a_batch_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
