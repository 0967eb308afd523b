"""What does guidance by a classifier buy? ADM's table 4 and figure 4, and its two-stage models.

python pipelines/guidance.py --list
python pipelines/guidance.py adm-guidance --preset tiny
"""

from __future__ import annotations

import tyro

from pipelines.cli import run
from pipelines.studies.catalogue import GUIDANCE
from pipelines.study import StudyCommand


def main(command: tyro.conf.OmitArgPrefixes[StudyCommand]) -> int:
    """Run a study, or what is still missing of it, and print its table."""
    return command(GUIDANCE)


if __name__ == "__main__":
    run(main)
