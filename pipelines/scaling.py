"""How do FID and likelihood fall with compute? Improved DDPM's figure 10, with the power laws fitted.

python pipelines/scaling.py --list
python pipelines/scaling.py iddpm-scaling --preset tiny
"""

from __future__ import annotations

import tyro

from pipelines.cli import run
from pipelines.studies.catalogue import SCALING
from pipelines.study import StudyCommand


def main(command: tyro.conf.OmitArgPrefixes[StudyCommand]) -> int:
    """Run a study, or what is still missing of it, and print its table."""
    return command(SCALING)


if __name__ == "__main__":
    run(main)
