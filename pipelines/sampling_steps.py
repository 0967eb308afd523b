"""How few sampling steps are enough, and where? Improved DDPM's figure 8, and ADM's swept schedules.

python pipelines/sampling_steps.py --list
python pipelines/sampling_steps.py iddpm-sampling-steps --preset tiny
"""

from __future__ import annotations

import tyro

from pipelines.cli import run
from pipelines.studies.catalogue import SAMPLING_STEPS
from pipelines.study import StudyCommand


def main(command: tyro.conf.OmitArgPrefixes[StudyCommand]) -> int:
    """Run a study, or what is still missing of it, and print its table."""
    return command(SAMPLING_STEPS)


if __name__ == "__main__":
    run(main)
