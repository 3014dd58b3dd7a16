"""Prepared data, artifacts and plans as tables and as JSON: what `inspect` and others print."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loractr.artifact.layout import Contents
    from loractr.data.store import Prepared
    from loractr.evaluation import Table
    from loractr.schema import Division, Schema

Counts = dict[str, int]


def prepared_json(prepared: "Prepared") -> dict[str, Any]:
    """Where it is, what its columns mean, and how many rows it has."""
    kept = ("splits", "dropped", "seconds", "versions")
    return {
        "kind": "prepared",
        "path": str(prepared.path),
        "schema": prepared.schema.model_dump(mode="json", exclude_defaults=True),
        **{key: prepared.manifest[key] for key in kept},
    }


def prepared_tables(prepared: "Prepared") -> "list[Table]":
    """The fields, then the rows of each split by each division."""
    splits = prepared.manifest["splits"]
    divisions = [division.name for division in prepared.schema.divisions]
    by_division = [_rows_table(splits, name) for name in divisions]
    return [fields_table(prepared.schema), *(by_division or [_rows_table(splits, None)])]


def artifact_json(path: Path) -> dict[str, Any]:
    """What the artifact at `path` can score, how large it is, and which versions are in use.

    Raises:
        ArtifactError: it is damaged or none at all.
    """
    from loractr.artifact import load
    from loractr.artifact.layout import Contents, divisions_of
    from loractr.model import count_parameters

    scorer, contents = load(path), Contents.open(path)
    return {
        "kind": "artifact",
        "path": str(path),
        "backbone": scorer.config.model.backbone,
        "method": scorer.config.method.name,
        "schema": scorer.schema.model_dump(mode="json", exclude_defaults=True),
        "parameters": count_parameters(scorer.config, scorer.model, len(scorer.domain_models)),
        "active": contents.manifest.active.model_dump(mode="json"),
        "mixers_stored": any(name.startswith("mixers/") for name in contents.manifest.files),
        "test": _test_metrics(
            contents, [*scorer.schema.divisions, *divisions_of(scorer.model, scorer.schema)]
        ),
        "base": contents.manifest.base,
    }


def artifact_tables(found: dict[str, Any]) -> "list[Table]":
    """The fields, the model, and what scores each domain."""
    from loractr.evaluation import Table
    from loractr.schema import Schema

    schema = Schema.model_validate(found["schema"])
    model = [
        ("backbone", found["backbone"]),
        ("method", found["method"]),
        *_acting(found),
        *((f"parameters, {part}", f"{count:,}") for part, count in found["parameters"].items()),
    ]
    by_division = [
        Table(
            title=f"domains of {division.name}",
            columns=("domain", "adapter", "own model", "test rows", "test AUC"),
            rows=tuple(
                (
                    name,
                    *_versions(found, division.name, name),
                    *_measured(found, division.name, name),
                )
                for name in division.domains
            ),
        )
        for division in schema.divisions
    ]
    return [fields_table(schema), Table("model", ("", "value"), tuple(model)), *by_division]


def plan_tables(plan: dict[str, Any]) -> "list[Table]":
    """What `loractr.run.dry_run` found."""
    from loractr.evaluation import Table
    from loractr.schema import Schema

    seconds = ("seconds_per_epoch", "most_seconds")
    lines = [
        *((f"{split} rows", f"{rows:,}") for split, rows in plan["rows"].items()),
        ("hidden sizes", ", ".join(map(str, plan["hidden_sizes"]))),
        *((f"parameters, {part}", f"{count:,}") for part, count in plan["parameters"].items()),
        ("stages", ", ".join(plan["stages"])),
        ("rows per second", f"{plan['rows_per_second']:,.0f}"),
        *zip(
            ("one epoch takes", "all take at most"), (_time(plan[s]) for s in seconds), strict=True
        ),
    ]
    fields = fields_table(Schema.model_validate(plan["schema"]))
    return [fields, Table("the run", ("", "expected"), tuple(lines))]


def fields_table(schema: "Schema") -> "Table":
    """The inputs of the model."""
    from loractr.evaluation import Table

    rows = [
        (field.name, field.kind, f"{field.size:,}" if field.size else "") for field in schema.fields
    ]
    return Table("fields", ("field", "kind", "embedding rows"), tuple(rows))


def _rows_table(splits: dict[str, Any], division: str | None) -> "Table":
    from loractr.evaluation import Table

    lines: dict[str, list[Counts]] = {}  # one entry of counts a split
    for split in splits.values():
        if division is not None:
            found = split["divisions"][division]
            for name, counts in {**found["domains"], "(unseen)": found["unseen"]}.items():
                lines.setdefault(name, []).append(counts)
        lines.setdefault("all rows", []).append(split)
    return Table(
        title="rows" if division is None else f"rows by {division}",
        columns=("domain", *splits, *(f"{split} positive" for split in splits)),
        rows=tuple(
            (name, *(f"{c['rows']:,}" for c in counts), *map(_share, counts))
            for name, counts in lines.items()
            if name != "(unseen)" or any(c["rows"] for c in counts)
        ),
    )


def _share(counts: Counts) -> str:
    return f"{counts['positives'] / counts['rows']:.1%}" if counts["rows"] else "–"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _acting(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What acts on a row besides the experts of its own domain."""
    active = found["active"]
    for version in active["adapters"].get("*", {}).values():
        yield "adapter of all rows", version
    for version in active["mixers"].values():
        yield "mixer", version
    if found["mixers_stored"] and not active["mixers"]:
        yield "mixer", "stored, does not act: no better on validation than the experts alone"


def _test_metrics(contents: "Contents", divisions: Sequence["Division"]) -> dict[str, Any]:
    """Division → domain → its metrics on test rows, of the versions in use that have some."""
    from loractr.artifact.layout import METRICS

    found: dict[str, Any] = {}
    for kind in ("adapters", "domains"):
        for (division, domain), folder in contents.active(kind, divisions).items():
            name = f"{folder}/{METRICS}"
            if name in contents.manifest.files:
                measured = contents.json(name)
                found.setdefault(division, {})[domain] = measured.get("test")
    return found


def _versions(found: dict[str, Any], division: str, domain: str) -> tuple[str, str]:
    adapters, models = (found["active"][kind].get(division, {}) for kind in ("adapters", "domains"))
    return adapters.get(domain, "–"), models.get(domain, "–")


def _measured(found: dict[str, Any], division: str, domain: str) -> tuple[str, str]:
    from loractr.evaluation.report import number

    test = found["test"].get(division, {}).get(domain)
    return (f"{test['rows']:,}", number(test["auc"])) if test else ("–", "–")
