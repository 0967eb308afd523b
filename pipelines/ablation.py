"""Which choices of a paper matter? Its ablation table, run cell by cell and set beside the paper's own numbers.

    python pipelines/ablation.py --list
    python pipelines/ablation.py iddpm-cifar10 --preset tiny
    python pipelines/ablation.py iddpm-cifar10 --preset tiny --seeds 2
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python pipelines/ablation.py iddpm-cifar10 --preset tiny
"""

from __future__ import annotations

import tyro

from pipelines.cli import run
from pipelines.studies.catalogue import ABLATIONS
from pipelines.study import StudyCommand


def main(command: tyro.conf.OmitArgPrefixes[StudyCommand]) -> int:
    """Run a study, or what is still missing of it, and print its table."""
    return command(ABLATIONS)


if __name__ == "__main__":
    run(main)
