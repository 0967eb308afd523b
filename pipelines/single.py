"""How is one step run by hand? Its plan up to that step, in this process or on Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import tyro

from orchestrator.backend import Backend, LocalBackend
from orchestrator.config import override_text
from orchestrator.materialize import materialize
from orchestrator.run import interruptible
from orchestrator.store import ArtifactStore
from pipelines.cli import HERE, Overrides, Places, check_workers, choose
from pipelines.plan import plan
from pipelines.presets import PRESETS


def command(role: str, what: str) -> Callable[..., int]:
    """The command line that materializes one role of a preset's plan, and prints where it lies and what it measured."""

    def main(
        preset: Annotated[str, tyro.conf.Positional] = "tiny",
        /,
        places: Annotated[Places, tyro.conf.arg(name="")] = HERE,
        set: Overrides = (),
        ray: bool = False,
        address: str | None = None,
    ) -> int:
        config = override_text(choose("preset", preset, PRESETS)(), set)
        check_workers(config.train, places)
        step = plan(config)[role]
        store = ArtifactStore(places.store)
        store.check_writable()
        with ExitStack() as session:
            session.enter_context(interruptible())
            backend: Backend = LocalBackend()
            if ray or address:
                from orchestrator.ray_backend import RayBackend, ray_session  # seconds to import

                session.enter_context(ray_session(address=address, trial_drivers=1))
                backend = RayBackend(store.root / ".ray" / "train")
                session.callback(backend.release)
            materialize([step], store, backend=backend, resources=places.resources())
        said = store.metrics(step)
        print(json.dumps({"artifact": str(store.path(step)), "metrics": said.metrics, "notes": said.notes}, indent=1))
        return 0

    main.__doc__ = f"""{what}

    Args:
        preset: A set-up: {", ".join(PRESETS)}.
        places: Where artifacts are kept and how many workers there are.
        set: Dotted settings, such as train.images=50000.
        ray: Run on a Ray that is started for this command, instead of in this process.
        address: Run on the Ray cluster at this address.
    """
    return main
