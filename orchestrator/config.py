"""How does a frozen dataclass become JSON and come back unchanged? And how is one setting of it changed by name?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON types: nested objects, lists for tuples."""
    return {field.name: _to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """The config that to_dict() was given. ValueError for unknown or missing keys, and for values of another type."""
    return _build(cls, data, path="")


def override(config: T, changes: Mapping[str, Any]) -> T:
    """A copy with dotted settings changed, such as {"train.lr": 3e-4}.

    Setting "x.kind" chooses another member of x's union, with that member's defaults for what is not set as well.
    An object as value changes the settings it names, and leaves the others.
    """
    data = to_dict(config)
    # kind first: the other keys belong to the member it chooses, whatever order they were given in.
    for path, value in sorted(_leaves(changes, ""), key=lambda change: (not change[0].endswith(".kind"), change[0])):
        if value == {}:
            raise ValueError(f"{path}={{}}: an empty object sets nothing; leave it out")
        _set(type(config), data, path, value)
    return from_dict(type(config), data)


def parse_settings(config: Any, settings: Sequence[str]) -> dict[str, Any]:
    """Settings as a command line has them, such as "train.lr=3e-4", as override() takes them; objects are taken apart.

    A value is JSON, except for a setting that holds a string: that takes the text as it stands.
    """
    strings = {path for path, value in _leaves(to_dict(config), "") if isinstance(value, str)}
    changes: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ValueError(f"{setting!r} is no setting: write KEY=VALUE, such as train.lr=3e-4")
        for leaf, value in _leaves({path: text if path in strings else _json_or_text(text)}, ""):
            if leaf in changes:
                raise ValueError(f"{leaf} is set twice, to {changes[leaf]!r} and {value!r}: set it once")
            changes[leaf] = value
    return changes


def flatten(config: Any) -> dict[str, Any]:
    """{"a.b": scalar}; lists become JSON text. For tables of parameters."""
    leaves = _leaves(to_dict(config), "")
    return {path: json.dumps(value) if isinstance(value, list) else value for path, value in leaves}


def diff(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configs differ; a setting that only one has is None in the other."""
    left, right = flatten(a), flatten(b)
    keys = sorted(left.keys() | right.keys())
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces. Raises ValueError for nan and inf."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} has no JSON form: a config holds numbers, strings, tuples and other configs")


def _build(cls: type[T], data: Any, *, path: str) -> T:
    """Fields are read one by one, so that every complaint names its dotted field; configs check themselves last."""
    fields = _types(typing.cast(Any, cls))
    if not isinstance(data, Mapping):
        raise ValueError(f"{path or cls.__name__}={data!r}: must be an object with the keys {', '.join(fields)}")
    for key in data:
        if key not in fields:
            raise ValueError(_unknown(_join(path, key), key, list(fields)))
    values = {}
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if field.name in data:
            values[field.name] = _value(fields[field.name], data[field.name], path=_join(path, field.name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_join(path, field.name)}: missing, and it has no default")
    return cls(**values)


def _value(annotation: Any, value: Any, *, path: str) -> Any:
    configs = _configs(annotation)
    if not configs or value is None:
        return _scalar(annotation, value, path)
    if len(configs) == 1:
        return _build(configs[0], value, path=path)
    kinds = {_kind(config): config for config in configs}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{path}.kind={kind!r}: must be one of {', '.join(kinds)}{hint(str(kind), list(kinds))}")
    return _build(kinds[kind], value, path=path)


def _scalar(annotation: Any, value: Any, path: str) -> Any:
    try:
        return _adapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        said = error.errors()[0]
        place = "".join(f"[{part}]" for part in said["loc"] if isinstance(part, int))
        raise ValueError(f"{path}{place}={said['input']!r}: {_lower(said['msg'])}") from None


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


@cache
def _types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _configs(annotation: Any) -> list[type]:
    """The dataclasses an annotation admits: itself, or the members of a union."""
    if isinstance(annotation, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        annotation = annotation.__value__
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _kind(config: type) -> str:
    (kind,) = typing.get_args(_types(config)["kind"])
    return kind


def _set(cls: type, data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    here: Any = data
    members: list[type] = [cls]
    for key in parents:
        members = _members_below(members, here, path, key)
        here = here[key]
    _members_below(members, here, path, last)
    if last == "kind" and len(members) > 1 and here["kind"] != value:
        here.clear()  # another member of the union: its own defaults
    here[last] = _to_json(value)


def _members_below(members: list[type], here: Any, path: str, key: str) -> list[type]:
    """The configs that may stand at a key of `here`, itself one of `members`. ValueError for a key that it lacks."""
    chosen = [m for m in members if isinstance(here, Mapping) and (len(members) == 1 or _kind(m) == here["kind"])]
    allowed = list(_types(chosen[0])) if chosen else []
    if key not in allowed:
        raise ValueError(_unknown(path, key, allowed))
    return _configs(_types(chosen[0])[key])


def _leaves(data: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            found += _leaves(value, _join(path, key))
        else:
            found.append((_join(path, key), value))
    return found


def _unknown(path: str, key: str, allowed: list[str]) -> str:
    if not allowed:
        return f"{path}: unknown key; {path.rpartition('.')[0]} is a single value"
    return f"{path}: unknown key{hint(key, allowed) or '.'} Allowed: {', '.join(allowed)}"


def hint(name: str, allowed: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the allowed name nearest to an unknown one; nothing when none is near."""
    near = get_close_matches(name, allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
