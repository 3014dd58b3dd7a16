"""Configuration + table → the (unfitted) schema, or every problem with it at once."""

from collections import Counter
from collections.abc import Collection, Iterator

from pydantic import ValidationError

from loractr.data.config import ColumnSplit, DataConfig, PerUserSplit, TemporalSplit
from loractr.data.sources.base import Table
from loractr.errors import SHOWN_PROBLEMS, ConfigError, meant, shown
from loractr.schema import Division, Field, Label, Schema


def resolve(config: DataConfig, table: Table) -> Schema:
    """The schema that `config` asks of `table`.

    A name in `config.fields` is the source's field of that name; a field spelt out is laid over the
    source's field of the same column or, where it says none, of the same name. Fields, divisions
    and label default to the source's.
    With `domain_as_field` the natural division becomes one more field, `domain_<division>`, which
    reads no column: its value is the domain itself.

    Raises:
        ConfigError: unknown names (with the nearest known one), columns that are only known after
            the click used as inputs or divisions, names used twice. All of them at once.
    """
    columns = table.frame.collect_schema().names()
    present = set(columns)
    label = _label(config, table)
    refused = {label.column: "it is the label itself", **table.post_outcome}
    problems: list[str] = []
    wanted = _wanted(config, table, problems)
    found = (_field(item, table, present, problems) for item in wanted)
    fields = [field for field in found if field is not None]
    divisions = tuple(config.divisions.values()) or table.divisions
    for place, column in _inputs(fields, divisions):
        if column in refused:
            problems.append(f"{place}: column {shown(column)} is no input: {refused[column]}")
        elif column not in present:
            problems.append(f"{place}: {_unknown('column', column, columns, problems)}")
    for place, column in _others(config, label):
        if column not in present:
            problems.append(f"{place}: {_unknown('column', column, columns, problems)}")
    if divisions:
        domain = Field(name=f"domain_{divisions[0].name}")
        taken = _taken(domain.name, fields)
        problems += taken
        fields += [domain] if config.domain_as_field and not taken else []
    problems += _repeated([field.name for field in fields])
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return Schema(
        fields=tuple(fields),
        divisions=divisions,
        label=label,
        weight=config.weight,
        group=config.group,
        missing_values=config.missing_values,
    )


def _wanted(config: DataConfig, table: Table, problems: list[str]) -> tuple[str | Field, ...]:
    wanted = table.default_fields if config.fields is None else config.fields
    if not wanted:
        problems.append("data.fields: name at least one input")
    return wanted


def _field(
    item: str | Field, table: Table, columns: Collection[str], problems: list[str]
) -> Field | None:
    """The field that an entry of `data.fields` means; None when it is wrong, so that nothing more
    is said about it."""
    if isinstance(item, str):
        if item in table.fields:
            return table.fields[item]
        if item not in columns:  # else the caller says why the column is refused, or takes it
            problems.append(f"data.fields: {_unknown('field', item, table.fields, problems)}")
            return None
        return Field(name=item)
    base = table.fields.get(item.name)
    if item.column and (base is None or base.source_column != item.column):
        base = table.fields.get(item.column)
    if base is None:
        return item
    try:
        return _laid_over(item, base)
    except ValidationError as error:
        reasons = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
        problems.append(f"data.fields: field {shown(item.name)}: {reasons}")
        return None


def _laid_over(item: Field, base: Field) -> Field:
    """The source's field with what the user set; options of another kind do not carry over."""
    said = {name: getattr(item, name) for name in item.model_fields_set}
    kept = base.model_fields_set - {"name"}
    if "kind" in said and said["kind"] != base.kind:
        kept = kept & {"column"}
    inherited = {name: getattr(base, name) for name in kept}
    if item.name != base.name:
        inherited["column"] = base.source_column
    return Field(**{**inherited, **said})


def _label(config: DataConfig, table: Table) -> Label:
    """The user's label; a column or, for the same column, a rule left out is the source's."""
    said = config.label
    if said is None:
        return table.label
    column = said.column if "column" in said.model_fields_set else table.label.column
    if column == table.label.column and "positive" not in said.model_fields_set:
        return table.label
    return Label(column=column, positive=said.positive)


def _inputs(fields: list[Field], divisions: tuple[Division, ...]) -> Iterator[tuple[str, str]]:
    """(place in the configuration, column) of everything that a prediction reads."""
    for field in fields:
        yield f"data.fields, field {shown(field.name)}", field.source_column
    for division in divisions:
        yield f"data.divisions.{division.name}", division.column


def _others(config: DataConfig, label: Label) -> Iterator[tuple[str, str]]:
    """(place, column) of everything else that the configuration names."""
    yield "data.label", label.column
    if config.weight is not None:
        yield "data.weight", config.weight
    if config.group is not None:
        yield "data.group", config.group
    if isinstance(config.split, TemporalSplit | PerUserSplit | ColumnSplit):
        yield "data.split.column", config.split.column
    if isinstance(config.split, PerUserSplit) and config.split.order is not None:
        yield "data.split.order", config.split.order
    if isinstance(config.deduplicate, tuple):
        for column in config.deduplicate:
            yield "data.deduplicate", column


def _unknown(what: str, name: str, known: Collection[str], problems: Collection[str]) -> str:
    """Nobody reads the hint of a problem that is not shown, and thousands of hints take long."""
    hint = f"; {meant(name, known)}" if len(problems) < SHOWN_PROBLEMS else ""
    return f"no {what} {shown(name)}{hint}"


def _taken(name: str, fields: list[Field]) -> list[str]:
    """The domain itself would be read in place of the column of such a field."""
    return [
        f"data.fields: the name {shown(name)} belongs to the domain as a field (`domain_as_field`);"
        f" call yours something else, like {{name: own_{name}, column: {field.source_column}}}"
        for field in fields
        if field.name == name
    ]


def _repeated(names: list[str]) -> list[str]:
    return [
        f"data.fields: field {shown(name)} is there {'twice' if count == 2 else f'{count} times'}"
        for name, count in Counter(names).items()
        if count > 1
    ]
