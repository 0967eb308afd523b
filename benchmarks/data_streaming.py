"""Is training that streams from object storage as fast as from disk, and does its memory stay the same? On loopback.

Noise of 64x64x3 in shards of 64 MiB, shuffled by twos, more than the memory a node may use. From disk and from
SeaweedFS take turns, an epoch each, with a new reader that has nothing decoded yet, whose wait for the first shards
counts. Memory is the most a process of its own held, counting what it mapped, for as many images and for twice as many.

    PYTHONPATH=. python benchmarks/data_streaming.py > docs/results/data_streaming.md
    PYTHONPATH=. python benchmarks/data_streaming.py --shards 3 --rounds 2
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from orchestrator.store import ArtifactStore
from pipelines.data_commands import List
from pipelines.decoded import MIB
from pipelines.named_data import named
from pipelines.prepare_command import Prepare
from pipelines.readers import ImageReader, StreamingReader, open_reader
from pipelines.remote_commands import Attach, Push
from tests.seaweedfs import KEY, SECRET, seaweedfs

BATCH = 128
SIDE = 64
SHARD_ROWS = 64 * MIB // (SIDE * SIDE * 3)
WINDOW_MIB = 128
MEMORY_MIB = 2 * WINDOW_MIB + 16


def write_noise(file: Path, images: int) -> None:
    """As the published evaluator's layout has them."""
    rng = np.random.default_rng(0)
    np.savez(file, arr_0=rng.integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8))


def opened(store: Path, cache: Path) -> ImageReader:
    """A reader that cannot keep all."""
    cache.mkdir(exist_ok=True)
    reader = open_reader(
        named(ArtifactStore(str(store)), "noise"), "train", seed=0, batch_size=BATCH, shuffle_bytes=WINDOW_MIB * MIB,
        memory_bytes=MEMORY_MIB * MIB, cache=cache,
    )  # fmt: skip
    assert isinstance(reader, StreamingReader)
    return reader


def read(reader: ImageReader, steps: range) -> None:
    """All batches of these steps."""
    for step in steps:
        reader.batch(step, slice(None))


def most_memory(store: Path, cache: Path, steps: int) -> float:
    """MiB, of a process that reads so many steps."""
    ended = subprocess.run(
        [sys.executable, __file__, "--read", str(store), str(cache), str(steps)], check=True, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    return float(ended.stdout)


def _read_and_say(store: str, cache: str, steps: str) -> None:
    with opened(Path(store), Path(cache)) as reader:
        read(reader, range(int(steps)))
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def main() -> None:
    """Print the tables as markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    if flags.read:
        _read_and_say(*flags.read)
        return
    speeds: dict[str, list[float]] = {"disk": [], "S3": []}
    memory: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        (folder / "server").mkdir()
        server = stack.enter_context(seaweedfs(folder / "server"))
        os.environ.update(AWS_ENDPOINT_URL=server.url, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET,
                          AWS_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true")  # fmt: skip
        server.files().create_dir("noise")
        for times in (1, 2):
            images = flags.shards * times * SHARD_ROWS
            write_noise(folder / "noise.npz", images * 10 // 9)
            stores = {"disk": folder / f"here-{times}", "S3": folder / f"there-{times}"}
            with contextlib.redirect_stdout(sys.stderr):
                Prepare(source=str(folder / "noise.npz"), image_size=SIDE, labels="none", store=str(stores["disk"]))()
                Push(name="noise", url="s3://noise/sets", store=str(stores["disk"]))()
                fingerprint = named(ArtifactStore(str(stores["disk"])), "noise").name
                Attach(url=f"s3://noise/sets/{fingerprint}", store=str(stores["S3"]))()
                List(store=str(stores["S3"]))()
            for name, store in stores.items():
                memory[name, times] = most_memory(store, folder / f"memory-{name}-{times}", images // BATCH)
            if times == 1:
                speeds = _take_turns(stores, folder, steps=images // BATCH, rounds=flags.rounds)
    _report(speeds, memory, flags.shards, flags.rounds)


def _take_turns(stores: dict[str, Path], folder: Path, *, steps: int, rounds: int) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in stores}
    for number in range(rounds + 1):  # the first opens connections and files
        for name, store in stores.items():
            cache = folder / f"cache-{name}-{number}"
            began = time.perf_counter()
            with opened(store, cache) as reader:
                read(reader, range(steps))
                speed = steps * BATCH / (time.perf_counter() - began)
            shutil.rmtree(cache)
            if number:
                speeds[name].append(speed)
    return speeds


def _report(
    speeds: dict[str, list[float]], memory: dict[tuple[str, int], float], shard_count: int, rounds: int
) -> None:
    ratios = [s3 / disk for s3, disk in zip(speeds["S3"], speeds["disk"], strict=True)]
    print(
        f"# Streaming from disk and from S3\n\nImages of {SIDE}x{SIDE}x3, {shard_count} shards of 64 MiB, {rounds} "
        f"epochs each, {os.cpu_count()} CPUs, SeaweedFS on loopback on the same ones.\n"
        f"`PYTHONPATH=. python benchmarks/data_streaming.py`\n\n"
        f"| from | images/s | least to most | of the disk's | MiB held | with twice the images |\n"
        f"|---|---:|---:|---:|---:|---:|"
    )
    for name, measured in speeds.items():
        share = "1" if name == "disk" else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"| {name} | {statistics.median(measured):,.0f} | {min(measured):,.0f} to {max(measured):,.0f} | {share} "
            f"| {memory[name, 1]:,.0f} | {memory[name, 2]:,.0f} |"
        )


if __name__ == "__main__":
    main()
