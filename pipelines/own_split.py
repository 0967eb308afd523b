"""Which split does a source bring? What its folders and files of records are called: train, test, val."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pipelines.shards import Split

Side = Literal["train", "test", "val"]
# As others write them, CIFAR's and MNIST's files among them; `trainer` is none.
SIDE = re.compile(
    r"(?:(?P<train>train(?:ing)?|data_batch)|(?P<test>test(?:ing)?|t10k)|(?P<val>val(?:id(?:ation)?)?))(?![a-z])", re.I
)


def own_side(name: str) -> Side | None:
    """What an entry's name tells: by the first folder, or file of records, that has such a name; not its own name."""
    for part in name.split("/")[:-1]:
        if found := SIDE.match(part):
            return found.lastgroup  # type: ignore[return-value]
    return None


def own_sides(names: Iterable[str]) -> set[Side]:
    """The sides of a source all of whose entries are on one; none where one is not, or all are on the same."""
    sides = {own_side(name) for name in names}
    if None in sides or len(sides) < 2 or "train" not in sides:
        return set()
    return sides  # type: ignore[return-value]


def own_split(name: str) -> Split | None:
    """The split an entry belongs to: what is for validation is held out, too."""
    side = own_side(name)
    return "test" if side == "val" else side


def below_split(label: str) -> str | None:
    """The class of an image in a folder that is split: what comes below; None where nothing does."""
    parts = label.split("/")
    at = next((number for number, part in enumerate(parts) if SIDE.match(part)), -1)
    return "/".join(parts[at + 1 :]) or None
