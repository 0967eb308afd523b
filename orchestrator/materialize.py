"""Which steps still have to run, and how is one run? Done already? Its inputs, its lease, the work, the record."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from orchestrator.attempts import begin, end
from orchestrator.backend import Backend
from orchestrator.errors import LeaseLost, PapertableError, StepFailed
from orchestrator.failpoints import failpoint
from orchestrator.lease import Fence, hold
from orchestrator.provenance import provenance
from orchestrator.step import FAILURE_FILE, Resources, Step, StepContext, write_failure
from orchestrator.store import ArtifactStore


def pending(steps: Iterable[Step], store: ArtifactStore) -> list[Step]:
    """The steps without a record, and those they need that have none either, in the order they would run."""
    needed: list[Step] = []

    def visit(step: Step) -> None:
        if store.is_done(step):
            return  # what it was made from is no longer needed
        for before in step.inputs.values():
            visit(before)
        needed.append(step)

    for step in steps:
        visit(step)
    return _once(needed)


def lease_of(step: Step, store: ArtifactStore) -> Path:
    """The file that says who runs a step."""
    return store.root / ".leases" / f"{step.name}-{step.fingerprint}.lease"


def _once(steps: Iterable[Step]) -> list[Step]:
    """Each step once, in the order given."""
    return list({step.key: step for step in steps}.values())


def materialize(
    steps: Iterable[Step], store: ArtifactStore, *, backend: Backend, resources: Resources, began_by: str = ""
) -> None:
    """Run what has no record yet. Raises StepFailed for the first step that does, its directory kept as it is.

    A step that somebody else runs is waited for; one that somebody else took over meanwhile, too. Who gives it a name
    of its own, began_by, can ask what runs to stop (stopping.py).
    """
    for step in pending(steps, store):
        lease = lease_of(step, store)
        while not store.is_done(step):
            try:
                with hold(lease, f"step {step.key}") as fence:
                    if not store.is_done(step):  # somebody may have run it while we waited
                        _run(step, store, backend, resources, fence, began_by)
            except LeaseLost as lost:
                print(f"{lost}: waiting for it", file=sys.stderr, flush=True)


def _run(step: Step, store: ArtifactStore, backend: Backend, resources: Resources, fence: Fence, began_by: str) -> None:
    output = store.path(step)
    output.mkdir(parents=True, exist_ok=True)
    inputs = {role: store.path(before) for role, before in step.inputs.items()}
    context = StepContext(
        inputs=inputs, output=output, backend=backend, resources=resources, fence=fence, began_by=began_by
    )
    attempts = begin(output, fence)
    context.progress(done=0, total=0, unit="")
    (output / FAILURE_FILE).unlink(missing_ok=True)
    began = time.monotonic()
    try:
        step.run(step.config, context)
        failpoint("step.before-commit")
        seconds = time.monotonic() - began
        spent = {"seconds": round(attempts.seconds + seconds, 3), "cpus": resources.cpus, "gpus": resources.gpus}
        store.commit(step, seconds=seconds, provenance=provenance(), fence=fence, spent=spent)
    except PapertableError:
        end(output, attempts, fence)
        fence.check()  # what goes wrong because another writes here, too, is no failure of the step
        raise  # it says what is wrong, and knows its exit code
    except Exception as error:
        fence.check()
        end(output, attempts, fence)
        reason = f"{type(error).__name__}: {error}"
        write_failure(output, reason)
        raise StepFailed(step.key, output, reason) from error
    failpoint("step.after-commit")
