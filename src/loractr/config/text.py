"""YAML text → plain values, and what `--set` changes in them."""

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from loractr.errors import ConfigError, repeated, shown


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What the file at `path` says, with overrides like `training.epochs=3` applied in turn.

    Raises:
        ConfigError: the file cannot be read or is no YAML with sections; an override that fits
            nowhere.
    """
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} is not valid YAML: {error}"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{path} must hold `data:`, `method:` and so on, not {shown(values)}"])
    found: dict[str, Any] = values
    for override in overrides:
        found = spelt_out(found)
        _override(found, override)
    return found


def spelt_out(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of `values` where a section that is only named is a section.

    >>> spelt_out({"method": "mlora", "data": {"split": "random"}})
    {'method': {'name': 'mlora'}, 'data': {'split': {'kind': 'random'}}}
    """
    spelt = {key: _named(key, value) for key, value in values.items()}
    data = spelt.get("data")
    if isinstance(data, dict):
        spelt["data"] = {key: _named(f"data.{key}", value) for key, value in data.items()}
    return spelt


_NAMES = {"method": "name", "data.split": "kind", "data.label": "column"}
"""Section → its key that a text in place of the section stands for."""


def _named(place: object, value: Any) -> Any:
    return {_NAMES[place]: value} if isinstance(value, str) and place in _NAMES else value


def _override(values: dict[str, Any], override: str) -> None:
    """Carry out one `--set`, in place."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError([f"--set {shown(override)} must look like training.epochs=3"])
    place: Any = values
    for key in keys[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError([f"--set {shown(override)}: {key!r} holds a value, not settings"])
    try:
        place[keys[-1]] = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"--set {shown(override)}: {shown(text)} is not valid YAML"]) from error


def _parsed(text: str) -> Any:
    """Plain text stays text, but for what is a number, true, false or null beyond doubt:
    2026-03-12, 10:30, 007, 2024_01 and NO mean in a configuration what they mean in a log.

    YAML itself makes a date, 630 minutes, an octal number and false of them; of two equal keys it
    keeps the last, in silence.
    """
    try:
        return yaml.load(text, Loader=_CompiledLoader)
    except yaml.YAMLError:  # the slow one says better where it is wrong
        return yaml.load(text, Loader=_Loader)


_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9]\d*)", list("-+0123456789")),
    ("float", r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
)
"""What is no text: its type, how it is written, and with which characters it begins."""


def _unique(
    loader: SafeConstructor, node: yaml.MappingNode, deep: bool = False
) -> dict[Hashable, Any]:
    """The mapping, if each key is there once."""
    keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for name in repeated(key.value for key in keys):
        first = next(key for key in keys if key.value == name)
        problem = f"key {shown(name)} is there more than once"
        raise ConstructorError(None, None, problem, first.start_mark)
    return SafeConstructor.construct_mapping(loader, node, deep)


def _with_our_rules(base: Any) -> Any:
    rules = {"yaml_implicit_resolvers": {}, "construct_mapping": _unique}
    loader: Any = type(base.__name__, (base,), rules)
    for kind, pattern, first in _SCALARS:
        written = re.compile(rf"(?:{pattern})\Z", re.ASCII)
        loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", written, first)
    return loader


_Loader = _with_our_rules(yaml.SafeLoader)
_CompiledLoader = _with_our_rules(getattr(yaml, "CSafeLoader", yaml.SafeLoader))
