"""pydantic's errors in the words of the file."""

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import ValidationError

from loractr.errors import cut, nearest, shown
from loractr.schema import Record

_QUOTE = "'"
_SETTINGS = "expected settings, as `key: value`"
_WORDS = {
    "dict_type": _SETTINGS,
    "model_type": _SETTINGS,
    "model_attributes_type": _SETTINGS,
    "tuple_type": "expected a list",
    "path_type": "expected a path",
}
"""pydantic's own messages, where they speak of classes."""


def problems(error: ValidationError, root: type[Record], values: dict[str, Any]) -> Iterator[str]:
    """One line for each place, in the words of the file.

    Where a value may be of several kinds, pydantic reports what each of them finds wrong: the kind
    that got deepest is the one that was meant; of equally deep ones all are told.
    """
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        place, message = _problem(item, root, values)
        found.setdefault(place, []).append(message)
    deeper = {place[: dot.start()] for place in found for dot in re.finditer(r"\.", place)}
    for place, messages in found.items():
        if place not in deeper:
            yield f"{place}: {'; or '.join(dict.fromkeys(messages))}"


def _problem(item: Any, root: type[Record], values: dict[str, Any]) -> tuple[str, str]:
    """Place and message of one of pydantic's errors."""
    place, owners = _locate(item["loc"], root, values, missing=item["type"] == "missing")
    if item["type"] == "extra_forbidden":
        known = sorted({name for owner in owners for name in owner.model_fields})
        near = nearest(str(item["loc"][-1]), known)
        hint = f"did you mean {near!r}?" if near else f"known keys: {', '.join(known)}"
        return place, f"unknown key; {hint}"
    if item["type"] == "missing":
        return place, "missing"
    if item["type"] == "value_error":
        return place or "config", str(item["ctx"]["error"])
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _bad_tag(place, item)
    message = _WORDS.get(item["type"]) or _lower(item["msg"])
    return place, f"{message}, not {shown(item['input'])}"


def _bad_tag(place: str, item: Any) -> tuple[str, str]:
    place = f"{place}.{str(item['ctx']['discriminator']).strip(_QUOTE)}"
    if "tag" not in item["ctx"]:
        return place, "missing"
    tag, known = item["ctx"]["tag"], item["ctx"]["expected_tags"].replace(_QUOTE, "").split(", ")
    near = nearest(tag, known)
    hint = f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
    return place, f"unknown {shown(tag)}; {hint}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _locate(
    loc: tuple[int | str, ...], root: type[Record], values: Any, *, missing: bool
) -> tuple[str, set[type[Record]]]:
    """The place as written in YAML, and the classes that may stand where its last key is.

    pydantic's location also names the kinds of a union, which no one wrote: what is not in
    `values` is left out, but for the last key of what is missing.
    """
    owners: set[type[Record]] = {root}
    written: list[str] = []
    for depth, part in enumerate(loc):
        last = depth == len(loc) - 1
        if isinstance(values, dict):
            here = part in values
        else:
            here = isinstance(values, list | tuple) and isinstance(part, int)
        if not here and not (last and missing):
            owners = {owner for owner in owners if part in _tags(owner)} or owners
            continue
        written.append(cut(str(part)))
        if not last:
            values = values[part]
            named = {o.model_fields[part].annotation for o in owners if part in o.model_fields}
            owners = {record for hint in named for record in _records(hint)} or owners
    return ".".join(written), owners


def _records(hint: Any) -> Iterator[type[Record]]:
    if isinstance(hint, type) and issubclass(hint, Record):
        yield hint
    for part in get_args(hint):
        yield from _records(part)


def _tags(owner: type[Record]) -> set[str]:
    return {
        str(value)
        for name in ("name", "kind")
        if name in owner.model_fields
        for value in _literals(owner.model_fields[name].annotation)
    }


def _literals(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if getattr(hint, "__origin__", None) is Literal else ()
