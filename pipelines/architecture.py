"""Which choices of the network matter? ADM's tables 1 to 3.

python pipelines/architecture.py --list
python pipelines/architecture.py adm-architecture --preset tiny
"""

from __future__ import annotations

import tyro

from pipelines.cli import run
from pipelines.studies.catalogue import ARCHITECTURE
from pipelines.study import StudyCommand


def main(command: tyro.conf.OmitArgPrefixes[StudyCommand]) -> int:
    """Run a study, or what is still missing of it, and print its table."""
    return command(ARCHITECTURE)


if __name__ == "__main__":
    run(main)
