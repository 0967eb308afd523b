"""Kill a training at any moment, as often as you like, and run the same command again: the same bits come out."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.failpoints import FIRED, FOLDER
from orchestrator.history import HISTORY_FILE
from orchestrator.lease import EXPIRES_SECONDS
from tests.chaos.guarantees import Finding, record
from tests.chaos.ray_cluster import ray_cluster
from tests.chaos.small_training import (
    OFTEN,
    SAME,
    Left,
    begun,
    call,
    command,
    directory,
    environment,
    forget_listener,
    is_training,
    left,
    resumed,
    saved_steps,
    steps_done,
)
from tests.small_study import ROOT, descendants, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

KILLS = 20
RAY_KILLS = 8


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_the_process_is_killed_at_random_moments(tmp_path: Path, undisturbed: Left) -> None:
    store, waits = tmp_path / "store", random.Random(1)
    recoveries, lost, kills = [], [], 0
    while kills < KILLS:
        with begun(store, *OFTEN) as process:
            began = time.monotonic()
            forget_listener(store)
            try:
                if kills % 4:
                    recoveries.append(resumed(store, process, began))
                    time.sleep(waits.uniform(0, 2.5))
                else:
                    time.sleep(waits.uniform(0, 8))  # at its start, too
            except AssertionError:
                break  # it ended before
            process.kill()
            kills += 1
            lost.append(max(steps_done(store) - saved_steps(store), 0))
    ended = call(store, *OFTEN)
    assert ended.returncode == 0, ended.stderr
    same = left(store) == undisturbed
    record(Finding("SIGKILL of the process that trains, at random", kills, kills * same, recoveries, lost, SAME))
    assert same
    assert kills >= KILLS // 2


POINTS = [
    "train.after-optimizer", "train.after-step", "train.before-journal", "train.in-serialising", "journal.before-fsync",
    "journal.after-fsync", "checkpoint.in-data", "checkpoint.after-data", "checkpoint.after-manifest",
    "checkpoint.after-pointer", "checkpoint.in-retention", "step.before-commit", "step.in-commit", "step.after-commit",
]  # fmt: skip


def test_the_process_is_killed_at_every_named_point(tmp_path: Path) -> None:
    images, held = 1_280, []
    assert call(tmp_path / "whole", *OFTEN, images=images).returncode == 0
    undisturbed = left(tmp_path / "whole")
    for number, point in enumerate(POINTS):
        store, armed = tmp_path / str(number), tmp_path / f"points-{number}"
        armed.mkdir()
        passage = 1 if point.startswith("step") else 2
        (armed / point).write_text(str(passage))
        assert call(store, *OFTEN, images=images, **{FOLDER: str(armed)}).returncode == -signal.SIGKILL, point
        assert (armed / f"{point}{FIRED}").exists()
        assert call(store, *OFTEN, images=images).returncode == 0
        held.append(left(store) == undisturbed)
    record(Finding("SIGKILL at each of the named failpoints", len(POINTS), sum(held), notes=", ".join(POINTS)))
    assert all(held), [point for point, same in zip(POINTS, held, strict=True) if not same]


def test_sigterm_keeps_the_state_within_the_grace_period_and_ends_with_75(tmp_path: Path, undisturbed: Left) -> None:
    store, seconds = tmp_path / "store", []
    for _ in range(3):
        with begun(store) as process:
            resumed(store, process, time.monotonic())
            time.sleep(2)
            before = steps_done(store)
            process.terminate()
            told = time.monotonic()
            assert process.wait(60) == 75
            seconds.append(time.monotonic() - told)
            assert saved_steps(store) >= before
    assert call(store).returncode == 0
    same = left(store) == undisturbed
    notes = f"exit code 75; recovery: until the state was kept; {SAME}"
    record(Finding("SIGTERM (a spot machine's notice)", 3, 3 * same, seconds, notes=notes))
    assert same


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit flipped": _flip,
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "deleted": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_costs_only_time(tmp_path: Path, undisturbed: Left, name: str) -> None:
    store = tmp_path / "store"
    with begun(store, *OFTEN) as process:
        wait_until(lambda: saved_steps(store) >= 30, process)
        process.kill()
    folder = directory(store)
    assert folder is not None
    newest = max(folder.glob("checkpoints/step-*"))
    DAMAGE[name](newest / "state.safetensors")
    assert call(store, *OFTEN).returncode == 0
    notes = json.loads((folder / "metrics.json").read_text())["notes"]
    named = any(f"checkpoint {newest.name} is damaged" in note and "state.safetensors" in note for note in notes)
    same = left(store) == undisturbed
    record(Finding(f"the newest checkpoint {name}", 1, int(same and named), notes=f"the file is named; {SAME}"))
    assert same
    assert named


def test_a_full_disk_ends_training_names_the_file_and_loses_nothing(tmp_path: Path, undisturbed: Left) -> None:
    store = tmp_path / "store"
    with begun(store, *OFTEN) as process:
        wait_until(lambda: saved_steps(store) >= 10, process)
        process.kill()
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); sys.argv = sys.argv[1:];"
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = command(store, *OFTEN)
    ended = subprocess.run(
        [arguments[0], "-c", script, *arguments[1:]], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert ended.returncode == 4, ended.stderr
    said = "".join(ended.stderr.split())
    assert "state.safetensors" in said
    assert call(store, *OFTEN).returncode == 0
    same = left(store) == undisturbed
    record(Finding("no room for a checkpoint (RLIMIT_FSIZE)", 1, int(same), notes=f"the error names the file; {SAME}"))
    assert same


WORKER = "ray::RayTrainWorker"


def test_ray_workers_are_killed_at_random_moments(tmp_path: Path, undisturbed: Left) -> None:
    store, waits = tmp_path / "store", random.Random(2)
    recoveries, lost, killed = [], [], set()
    with begun(store, "--ray", "--workers", "2", *OFTEN) as process:
        wait_until(lambda: is_training(store), process)
        while len(killed) < RAY_KILLS and process.poll() is None:
            time.sleep(waits.uniform(0, 4))
            workers = [pid for pid in descendants(process.pid, named=WORKER) if pid not in killed]
            if not workers or process.poll() is not None:
                continue
            before = steps_done(store)
            forget_listener(store)
            kill(victim := waits.choice(workers))
            killed.add(victim)
            began = time.monotonic()
            lost.append(max(before - saved_steps(store), 0))
            while not is_training(store) and process.poll() is None:
                time.sleep(0.05)
            if process.poll() is None:
                recoveries.append(time.monotonic() - began)
        assert process.wait(600) == 0
    same = left(store) == undisturbed
    count = len(killed)
    record(Finding("SIGKILL of a Ray Train worker, one of 2", count, count * same, recoveries, lost, SAME))
    assert same
    assert count >= RAY_KILLS // 2


def test_other_numbers_of_workers_in_the_middle_of_a_training_change_no_bit(tmp_path: Path, undisturbed: Left) -> None:
    store = tmp_path / "store"
    for workers, until in ((2, 20), (1, 50), (2, 70)):
        there = ("--ray", "--workers", str(workers)) if workers > 1 else ()
        with begun(store, *there, *OFTEN) as process:
            wait_until(lambda until=until: saved_steps(store) >= until, process)
            process.kill()
        time.sleep(1)
    assert call(store, "--ray", "--workers", "2", *OFTEN).returncode == 0
    same = left(store) == undisturbed
    record(Finding("2, 1, 2 and 2 workers, one after the other, each killed", 3, 3 * same, notes=SAME))
    assert same


def test_one_two_and_four_workers_leave_the_same_bits(tmp_path: Path, undisturbed: Left) -> None:
    held = []
    with ray_cluster(tmp_path, head_cpus=4) as cluster:
        for workers in (1, 2, 4):
            store = tmp_path / str(workers)
            ended = call(store, "--address", cluster.address, "--workers", str(workers), **cluster.environment)
            assert ended.returncode == 0, ended.stderr
            held.append(left(store) == undisturbed)
    record(Finding("1, 2 and 4 workers", 3, sum(held), notes=f"on Ray; {SAME}"))
    assert all(held)


def test_a_ray_node_is_killed_and_training_goes_on_on_another(tmp_path: Path, undisturbed: Left) -> None:
    store, recoveries, lost, kills = tmp_path / "store", [], [], 3
    with ray_cluster(tmp_path, head_cpus=0) as cluster:
        nodes = [cluster.add_node(cpus=1), cluster.add_node(cpus=1)]
        with begun(store, "--address", cluster.address, *OFTEN, **cluster.environment) as process:
            for number in range(kills):
                wait_until(lambda number=number: saved_steps(store) >= 20 * number + 10, process, seconds=200)
                (busy,) = [node for node in nodes if descendants(node, named=WORKER)]
                before = steps_done(store)
                forget_listener(store)
                began = time.monotonic()
                cluster.kill_node(busy)
                nodes.remove(busy)
                lost.append(max(before - saved_steps(store), 0))
                wait_until(lambda: is_training(store), process, seconds=300)
                recoveries.append(time.monotonic() - began)
                nodes.append(cluster.add_node(cpus=1))
            assert process.wait(600) == 0, Path(f"{store}.log").read_text()
    same = left(store) == undisturbed
    record(Finding("a Ray node killed (3 nodes)", kills, kills * same, recoveries, lost, SAME))
    assert same


def test_two_processes_that_are_told_the_same_train_it_once(tmp_path: Path, undisturbed: Left) -> None:
    store = tmp_path / "store"
    with begun(store, *OFTEN) as first, begun(store, *OFTEN) as second:
        assert [first.wait(600), second.wait(600)] == [0, 0]
    same, (output,) = left(store) == undisturbed, store.glob("train/*/")
    once = len((output / HISTORY_FILE).read_text().splitlines()) == 1
    record(Finding("two processes that are told to train the same", 1, int(same and once), notes=f"once; {SAME}"))
    assert same
    assert once


def test_a_process_that_waits_for_another_ones_training_ends_alone(tmp_path: Path, undisturbed: Left) -> None:
    store = tmp_path / "store"
    with begun(store, *OFTEN) as first:
        wait_until(lambda: is_training(store), first)
        with begun(store, *OFTEN) as waiting:
            log = Path(f"{store}.log")
            wait_until(lambda: "waiting for step" in log.read_text(), waiting)
            waiting.terminate()
            assert waiting.wait(60) == 75
        assert first.wait(600) == 0
    same = left(store) == undisturbed
    record(Finding("SIGTERM of a process that waits for another one's training", 1, int(same), notes=f"once; {SAME}"))
    assert same


def test_a_process_that_is_stopped_is_followed_and_writes_nothing_when_it_wakes_up(
    tmp_path: Path, undisturbed: Left
) -> None:
    store, recoveries = tmp_path / "store", []
    with begun(store, *OFTEN) as former:
        wait_until(lambda: saved_steps(store) >= 10, former)
        os.kill(former.pid, signal.SIGSTOP)
        stopped, before = time.monotonic(), saved_steps(store)
        with begun(store, *OFTEN) as successor:
            wait_until(lambda: saved_steps(store) >= before + 20, successor)
            recoveries.append(time.monotonic() - stopped)
            os.kill(former.pid, signal.SIGCONT)
            assert [former.wait(600), successor.wait(600)] == [0, 0]
    same = left(store) == undisturbed
    notes = f"its lease expires after {EXPIRES_SECONDS:g} s; when it goes on it waits for its successor; {SAME}"
    record(
        Finding(
            "SIGSTOP of the process that trains, SIGCONT after another took over", 1, int(same), recoveries, notes=notes
        )
    )
    assert same


def test_a_training_goes_on_with_the_nodes_that_are_left_and_takes_the_ones_that_come(tmp_path: Path) -> None:
    images, store = 64 * 400, tmp_path / "store"
    assert call(tmp_path / "whole", images=images).returncode == 0
    elastic = ("--workers", "2", "--min-workers", "1", *OFTEN)
    with ray_cluster(tmp_path, head_cpus=0) as cluster:
        nodes = [cluster.add_node(cpus=1), cluster.add_node(cpus=1)]
        there = ("--address", cluster.address)
        with begun(store, *there, *elastic, images=images, **cluster.environment) as process:
            wait_until(lambda: saved_steps(store) >= 20, process)
            before, began = steps_done(store), time.monotonic()
            cluster.kill_node(nodes[1])
            wait_until(lambda: saved_steps(store) > before + 10, process)
            seconds = time.monotonic() - began
            cluster.add_node(cpus=1)
            wait_until(lambda: _workers(store)[-1] == 2, process)
            assert process.wait(600) == 0, Path(f"{store}.log").read_text()
    same = left(store) == left(tmp_path / "whole")
    changes = _workers(store)
    notes = f"workers were {', '.join(map(str, changes))}; recovery: until ten new steps were kept; {SAME}"
    record(Finding("a Ray node killed and not replaced, --min-workers 1", 1, int(same), [seconds], notes=notes))
    assert same
    assert changes == [2, 1, 2]


def _workers(store: Path) -> list[int]:
    """How many trained together, each time."""
    history = next(iter(store.glob(f"train/*/{HISTORY_FILE}")))
    return [json.loads(line)["workers"] for line in history.read_text().splitlines()]
