"""How does a training go on, whatever befalls it? From verified checkpoints, with a journal that has no gap.

All workers hold the same state. Rank 0 alone reads and writes what is kept, so no worker can go back further than the
others; they are told what it read.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from diffusion.checkpoints import HEADER, Network, header_of
from diffusion.ema import rate_name
from diffusion.objectives import Examples
from diffusion.reduction import told_by_first
from diffusion.sharding import shard, whole
from diffusion.train_config import AllReduceConfig, TrainConfig
from diffusion.train_state import build_train_state
from diffusion.training import StepMetrics, train_step
from orchestrator.backend import SpmdContext
from orchestrator.blobs import open_blobs
from orchestrator.checkpoint import Checkpoint, CheckpointStore
from orchestrator.checkpoint_writer import CheckpointWriter
from orchestrator.failpoints import ARMED, failpoint
from orchestrator.history import History
from orchestrator.journal import Journal
from orchestrator.lease import guarded, seize
from orchestrator.step import JOURNAL_FILE, write_progress
from orchestrator.stopping import Preempted, asked_to_stop, listening
from pipelines.metrics_window import Machine, MetricsWindow
from pipelines.readers import ImageReader
from pipelines.trained import MODEL_FILE
from pipelines.training_parts import Place, Training

LOG_EVERY_STEPS = 10
PROGRESS_SECONDS = 1.0
WINDOW = "window"  # in the meta data: what the journal does not have yet
STATE_FILE, META_FILE = "state.safetensors", "meta.json"


class TrainingRun:
    """One worker's part of a training."""

    def __init__(self, training: Training, spmd: SpmdContext, place: Place, reader: ImageReader) -> None:
        config = training.config
        config.check_workers(spmd.world_size)
        self.training, self.spmd, self.place, self.reader = training, spmd, place, reader
        self.machine = Machine.of(training.network, config, device=spmd.device, workers=spmd.world_size)
        self.is_spread = isinstance(config.reduction, AllReduceConfig) and config.reduction.sharded
        self.module = _trainable(training.network, config, spmd)
        num_timesteps = training.objective.schedule.num_timesteps
        self.state = build_train_state(config, training.network, num_timesteps=num_timesteps)
        self.damage: list[str] = []
        """What was wrong with checkpoints when training resumed: told in the step's notes."""
        self.went_on_from: int | None = None
        """Images seen in the state of its own that training resumed from."""
        self.is_first = spmd.rank == 0
        if ARMED:
            self.state.optimizer.register_step_post_hook(lambda *_: failpoint("train.after-optimizer"))
        if self.is_first:
            with guarded(place.fence):
                # A worker that Ray has given up, and that lives on, can write nothing from here on.
                self.fence = seize(place.output / "checkpoints" / "writer.lease")
            self.store = CheckpointStore(open_blobs(place.checkpoints))
            self.journal = Journal(place.output / JOURNAL_FILE, fence=self.fence)
            self.history = History(place.output)
            self.window = MetricsWindow(self.state, self.machine, with_param_norm=not self.is_spread)

    def resume(self) -> None:
        """Go on from the newest checkpoint that verifies, if there is one."""
        tensors, meta = self._kept() if self.is_first else (None, None)
        window = None if meta is None else meta.pop(WINDOW)
        if self.spmd.world_size > 1:
            told = told_by_first(self._tensors(), tensors, meta)
            tensors, meta = (None, None) if told is None else told
        if tensors is not None and meta is not None:
            self._take(tensors, meta)
            if window is not None:
                self.window.begin(window)
        if self.is_first:
            with self.fence.guard():
                for unfinished in self.place.output.glob(".*.safetensors.*"):  # of a writer that was killed
                    unfinished.unlink(missing_ok=True)
            self.history.add(resumed_at=self.state.images_seen, workers=self.spmd.world_size, damage=self.damage)

    def _kept(self) -> tuple[dict[str, Tensor] | None, dict[str, Any] | None]:
        """Raises ValueError for the state of another network: one of another layout of attention fits as well."""
        self.store.claim(turn=self.fence.guard)  # not from a worker that came after this one
        checkpoint, place = self.store.resume(on_damage=self.damage.append), self.place.checkpoints
        if checkpoint is not None:
            self.went_on_from = checkpoint.clock
        elif self.place.start is not None:
            checkpoint, place = _last_of(self.place.start), self.place.start
        if checkpoint is None:
            return None, None
        state = checkpoint.files[STATE_FILE]
        described = header_of(state).get(HEADER)
        if described is None or json.loads(described) != json.loads(json.dumps(self._description())):
            raise ValueError(f"{place}: its checkpoint is of another network ({described}): remove what is there")
        return load(state), json.loads(checkpoint.files[META_FILE])

    def train(self) -> None:
        """Train until train.images have been seen, journaling means over windows of LOG_EVERY_STEPS steps.

        Raises Preempted when asked to stop, with all state kept.
        """
        if not self.is_first:
            self._train_along()
            return
        heard = listening(self.place.output, began_by=self.place.began_by, fence=self.fence)
        with heard, CheckpointWriter(self.store) as writer:
            writer.verified = self.went_on_from
            self._train_and_keep(writer)
            self._keep_now(writer)

    def _train_along(self) -> None:
        """The other workers' loop."""
        for _ in self._steps():
            if self.is_spread and self._window_ends() and not self._ended() and self._agreed(False):
                self._copies()
        if self.is_spread:
            self._copies()

    def _agreed(self, due: bool) -> bool:
        """What the first worker says, told to all where a state is to be put together from them."""
        if not self.is_spread:
            return due
        told = torch.tensor([due], device=self.spmd.device)
        dist.broadcast(told, 0)
        return bool(told)

    def _train_and_keep(self, writer: CheckpointWriter) -> None:
        """The first worker's loop: it also journals, keeps checkpoints, and shows how far training is."""
        place, window = self.place, self.window
        saved, saved_step, shown, stop = time.monotonic(), self.state.step, 0.0, False
        for measured, data_wait, held_out in self._steps():
            window.add(measured, data_wait=data_wait, held_out=held_out)
            now = time.monotonic()
            if self._window_ends():
                self._log(window.close())
            if now - shown >= PROGRESS_SECONDS:
                self._show(writer)
                writer.check()
                stop, shown = asked_to_stop(place.output, began_by=place.began_by), now
            if self._ended() or (self.is_spread and not self._window_ends()):
                continue  # workers that must agree do so between windows alone
            steps = self.state.step - saved_step
            due = now - saved >= place.checkpoint_seconds or steps >= (place.checkpoint_steps or steps + 1)
            if self._agreed(stop or (due and writer.is_idle)):
                if stop:
                    self._stop(writer)
                self._offer(writer)
                saved, saved_step = now, self.state.step

    def _stop(self, writer: CheckpointWriter) -> None:
        self._keep_now(writer)
        raise Preempted(f"stopped after {self.state.images_seen} images, all kept; run the same command again to go on")

    def _keep_now(self, writer: CheckpointWriter) -> None:
        """Wait until the state as it is now is stored; what is being stored before it, comes first."""
        writer.flush()
        self._offer(writer)
        writer.flush()

    def _window_ends(self) -> bool:
        return self.state.step % LOG_EVERY_STEPS == 0 or self._ended()

    def _steps(self) -> Iterator[tuple[StepMetrics, float, dict[str, float]]]:
        """Take steps until training ends: what each measured, its wait for images, and metrics of held-out images."""
        while not self._ended():
            step = self.state.step
            examples, data_wait = self.examples(step)
            measured = train_step(
                self.state, self.module, self.training.objective, examples, step=step, seed=self.training.seed
            )
            failpoint("train.after-step")
            yield measured, data_wait, self.training.held_out.after(self.state)

    def examples(self, step: int) -> tuple[Examples, float]:
        """This worker's share of a step's batch, and the seconds until the reader had it."""
        size, began = self.training.config.batch_size, time.monotonic()
        share = size // self.spmd.world_size
        mine = slice(self.spmd.rank * share, (self.spmd.rank + 1) * share)
        stored = self.reader.batch(step, mine)
        data_wait = time.monotonic() - began
        index = torch.arange(mine.start, mine.stop, device=self.spmd.device)
        return self.training.examples(stored, step, index), data_wait

    def _offer(self, writer: CheckpointWriter) -> None:
        """Hand over a copy of the whole state, which training then goes on to change."""
        tensors = self._copies()
        # Not canonical_json(): a metric may be nan, and what training is judged by is the loss.
        meta = json.dumps({**self._meta(), WINDOW: self.window.unfinished()}, sort_keys=True).encode()
        described = {HEADER: json.dumps(self._description())}

        def files() -> dict[str, bytes]:
            failpoint("train.in-serialising")
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            return {STATE_FILE: save(whole, metadata=described), META_FILE: meta}

        writer.offer(files, clock=self.state.images_seen)

    def finish(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Write the model, and return what the table should know of this training; nothing on the other workers.

        The model is what held-out images chose, else the first average, else the weights; further averages stand
        beside it.
        """
        rates, chosen = self.training.config.ema.rates, self.training.held_out.chosen()
        self._write(MODEL_FILE, self.state.ema_weights() if chosen is None else chosen, metadata)
        for rate in rates if chosen is not None else rates[1:]:
            self._write(f"ema_{rate_name(rate)}.safetensors", self.state.ema_weights(rate), metadata)
        if not self.is_first:
            return {}
        metrics = {
            "images_seen": float(self.state.images_seen),
            "parameters": float(_count(self.state.model)),
            **self.training.held_out.metrics(),
        }
        begins = "then trained on, to" if self.place.goes_on else "trained on"
        length = f"{begins} {self.state.images_seen:,} images, a batch of {self.training.config.batch_size} at a time"
        return {"metrics": metrics, "notes": [length, *self._notes(), *self.damage]}

    def _write(self, file: str, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        together = {name: whole(tensor) for name, tensor in weights.items()}
        if self.is_first:
            # A worker that came after this one writes the model: until it is this one's turn, by another name.
            partial = self.place.output / f".{file}.{uuid.uuid4().hex}"
            try:
                self.training.network.save(partial, weights=together, metadata=metadata)
                with self.fence.guard():
                    partial.replace(self.place.output / file)
            finally:
                partial.unlink(missing_ok=True)

    def _copies(self) -> dict[str, Tensor]:
        """The whole state, on the CPU; of a network that is spread, all workers put it together."""
        return {name: whole(tensor.detach()).to("cpu", copy=True) for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {**self.state.tensors(), **self.training.held_out.tensors()}

    def _meta(self) -> dict[str, Any]:
        return {**self.state.meta(), **self.training.held_out.meta()}

    def _take(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        own = self.state.meta()
        held_out = {name: tensor for name, tensor in tensors.items() if name.startswith("held_out.")}
        rest = {name: tensor for name, tensor in tensors.items() if name not in held_out}
        self.state.load_tensors(rest, {key: value for key, value in meta.items() if key in own})
        self.training.held_out.load(held_out, {key: value for key, value in meta.items() if key not in own})

    def _description(self) -> dict[str, Any]:
        return self.training.network.description()

    def _ended(self) -> bool:
        return self.state.images_seen >= self.training.config.images

    def _log(self, metrics: Mapping[str, float]) -> None:
        failpoint("train.before-journal")
        self.journal.log(metrics, step=self.state.images_seen)

    def _show(self, writer: CheckpointWriter) -> None:
        facts: dict[str, object] = {**self.window.last}
        if writer.verified is not None:
            facts["saved"] = writer.verified
        if writer.trouble is not None:
            facts["not saving"] = writer.trouble
        if self.history.recoveries:
            facts["recoveries"] = self.history.recoveries
        done, total = self.state.images_seen, self.training.config.images
        with self.fence.guard():
            write_progress(self.place.output, done=done, total=total, unit="img", facts=facts)

    def _notes(self) -> list[str]:
        sampler, state = self.training.config.timesteps, self.state
        if sampler.kind == "uniform":
            return []
        pools = sampler.pools
        name = "the paper's history of each t" if pools is None else f"some {pools} histories of neighbouring t"
        if (warm_at := state.sampler_warm_at) is None:
            return [f"importance sampling of t ({name}) never left its uniform warm-up in {state.images_seen} images"]
        return [f"importance sampling of t ({name}) began after {warm_at} of {state.images_seen} images"]


def _last_of(place: str) -> Checkpoint | None:
    """The state that another training ended with. Raises ValueError when it is damaged."""
    try:
        return CheckpointStore(open_blobs(place)).last()
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{place}: the last state of the training that this one goes on from is damaged ({error}); train from the "
            f"beginning, without milestones"
        ) from error


def _trainable(network: Network, config: TrainConfig, spmd: SpmdContext) -> nn.Module:
    """The network as it is called in training."""
    module: nn.Module = network
    if isinstance(config.reduction, AllReduceConfig):
        if config.reduction.sharded:
            shard(network)
        elif spmd.world_size > 1:
            module = nn.parallel.DistributedDataParallel(network)
    return torch.compile(module, dynamic=False) if config.compile else module  # type: ignore[return-value]


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
