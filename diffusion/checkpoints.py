"""How is a network kept in a file? Weights as safetensors, and beside them in the header what builds the network.

Nothing in the file is code: the header is JSON, and is held against the types of the config it describes.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

HEADER = "network"

N = TypeVar("N", bound="Network")


class Network(nn.Module, ABC):
    """A network that can be written to a file and built again from it: type(network)(config, **arguments)."""

    kind: ClassVar[str]
    """What the header calls it."""
    config_type: ClassVar[type]

    def description(self) -> dict[str, Any]:
        """What builds this network, as JSON has it."""
        return {"kind": self.kind, "config": asdict(self.built_from()), "arguments": self.arguments()}

    def built_from(self) -> Any:
        """The config this network was built from."""
        return self.config

    def arguments(self) -> dict[str, int]:
        """What its constructor takes besides the config."""
        return {}

    @property
    @abstractmethod
    def torso(self) -> tuple[nn.Module, ...]:
        """The parts that may compute in 16 bits, in order; the first begins with the convolution that sees x_t."""

    @abstractmethod
    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        """Inputs of the right shapes, zeros, by the names of forward's arguments, on the default device."""

    def save(
        self,
        path: str | Path,
        *,
        weights: Mapping[str, Tensor] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the network to a file; by choice other weights (an average) in it, and more header.

        Equal networks give equal files. The name appears when the file is whole. Raises ValueError for weights that are
        not this network's.
        """
        if HEADER in (metadata or {}):
            raise ValueError(f"metadata[{HEADER!r}] is the network's own description")
        state = self.state_dict() if weights is None else weights
        check_weights(self.state_dict(), state, of=str(path))
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        # Another process may write the same file, too.
        partial = Path(path).with_name(f".{Path(path).name}.{uuid.uuid4().hex}.partial")
        try:
            save_file(kept, partial, metadata={HEADER: json.dumps(self.description()), **(metadata or {})})
            _put_in_order(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def from_checkpoint(cls: type[N], path: str | Path, *, device: str | torch.device = "cpu") -> N:
        """The network that save() wrote, ready for inference (eval).

        Raises ValueError, which says what is wrong, for any other file, and FileNotFoundError where there is none.
        """
        description, weights = read_checkpoint(path)
        if set(description) != {"kind", "config", "arguments"}:
            raise ValueError(f"{path}: its header has {sorted(description)}, not kind, config and arguments")
        if description["kind"] != cls.kind:
            raise ValueError(f"{path}: holds a {description['kind']!r}, and {cls.__name__} reads a {cls.kind!r} alone")
        arguments = description["arguments"]
        try:
            config = decode(cls.config_type, description["config"], at="config")
            if not isinstance(arguments, dict) or not all(type(value) is int for value in arguments.values()):
                raise ValueError(f"arguments={arguments!r}: whole numbers by name")
            with torch.device("meta"):
                network = cls(config, **arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: its header describes no {cls.kind}: {error}") from error
        load_weights(network, weights, of=str(path))
        return network.eval().to(device)


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says of its network, and its weights. Raises ValueError for a file that says nothing of one."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if header is None:
        raise ValueError(f"{path}: its header does not describe a network; papertable's own weights do")
    try:
        description = json.loads(header)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its header is not JSON ({error})") from error
    if not isinstance(description, dict):
        raise ValueError(f"{path}: its header describes a network by {description!r}")
    return description, weights


def _put_in_order(file: Path) -> None:
    """Sort the metadata in a file's header, which safetensors writes in an order that chance decides."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length
        stream.seek(8)
        stream.write(text.ljust(length))


def header_of(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file's content."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, of: str) -> None:
    """Give the network these weights, also if it has none yet (on the meta device): then in float32, or their float64.

    Raises ValueError for weights that are not this network's, or that it would round.
    """
    check_weights(network.state_dict(), weights, of=of)
    widest = torch.float64 if any(tensor.dtype == torch.float64 for tensor in weights.values()) else torch.float32
    if any(parameter.is_meta for parameter in network.parameters()):
        network.to_empty(device="cpu").to(widest)
    elif widest == torch.float64 and any(parameter.dtype != widest for parameter in network.parameters()):
        raise ValueError(
            f"{of}: the weights are float64, and this network would round them: call .double() on it first"
        )
    network.load_state_dict(dict(weights))


def check_weights(own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, of: str) -> None:
    """Raises ValueError that names what is missing, unknown, misshapen, or no number."""
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in own]
    for name in own:
        if name in given and given[name].shape != own[name].shape:
            problems.append(f"{name} has shape {tuple(given[name].shape)}, not {tuple(own[name].shape)}")
        elif name in given and not given[name].is_floating_point():
            problems.append(f"{name} has dtype {given[name].dtype}, no floating point")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{of}: the weights are not this network's: {'; '.join(problems[:5])}{more}")


def decode(type_: Any, data: Any, *, at: str) -> Any:
    """A value of that type from JSON. Raises ValueError that says where JSON has something else."""
    origin, arguments = get_origin(type_), get_args(type_)
    if is_dataclass(type_) and isinstance(type_, type):
        return _decode_dataclass(type_, data, at=at)
    if origin in (Union, UnionType):
        return _decode_union(arguments, data, at=at)
    if origin is Literal:
        if data in arguments:
            return data
    elif origin is tuple:
        if isinstance(data, list):
            return tuple(decode(arguments[0], item, at=f"{at}[{number}]") for number, item in enumerate(data))
    elif data is None and type_ is type(None):
        return None
    elif type(data) is type_ or (type_ is float and type(data) is int):
        return data
    raise ValueError(f"{at}={data!r}: not {getattr(type_, '__name__', type_)}")


def _decode_union(members: tuple[Any, ...], data: Any, *, at: str) -> Any:
    for member in members:
        try:
            return decode(member, data, at=at)
        except ValueError:
            continue
    raise ValueError(
        f"{at}={data!r}: none of {', '.join(getattr(member, '__name__', str(member)) for member in members)}"
    )


def _decode_dataclass(type_: type, data: Any, *, at: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{at}={data!r}: not {type_.__name__}")
    known = {field.name for field in fields(type_)}
    unknown, missing = sorted(set(data) - set(known)), sorted(set(known) - set(data))
    if unknown or missing:
        raise ValueError(f"{at}: unknown are {unknown}, missing are {missing}")
    hints = get_type_hints(type_)
    return type_(**{name: decode(hints[name], value, at=f"{at}.{name}") for name, value in data.items()})
