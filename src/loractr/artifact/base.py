"""`read_base`: a finished model that another run starts with."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from loractr.artifact.layout import MANIFEST, Contents
from loractr.artifact.load import load
from loractr.backbones import ModelConfig
from loractr.data.encode import Encoders, is_domain_field, keeps_vocabulary
from loractr.errors import ConfigError, UsageError, some
from loractr.schema import Field, Schema

FREE = {"dropout", "embedding_dropout", "dropout_position", "embedding_std"}
"""Settings of a model that change how it trains, not what a trained one computes."""
OPEN = {"pretrained", "embedding_size", "unknown_rows"}
"""Options of a field that say nothing about what an index means; shapes are compared as such."""


@dataclass(frozen=True)
class Base:
    """A finished model to start with."""

    digest: str
    """SHA-256 of the artifact's base model."""
    tensors: dict[str, Tensor]
    """Its tensors, by their names in the model without adapters."""


def read_base(path: Path, model: ModelConfig, encoders: Encoders) -> Base:
    """The base model of an artifact, for a run that starts with it. What the artifact has besides,
    adapters and whole models of domains, plays no part.

    Args:
        path: An artifact, or the folder of the run that made one.
        model: The model of the run that starts.
        encoders: Encoders of its data: the same value must have the same index in both.

    Raises:
        ArtifactError: there is no whole artifact at `path`.
        ConfigError: its model is another one, or its data has other fields or vocabularies; every
            difference is named.
    """
    inside = path / "artifact"
    path = inside if (inside / MANIFEST).exists() else path
    scorer = load(path)
    problems = _of_models(scorer.config.model, model)
    problems += _of_fields(scorer.schema, encoders.schema) or _of_vocabularies(
        scorer.encoders, encoders
    )
    if problems:
        raise ConfigError(
            (f"start_from: {problem}" for problem in problems),
            fix=f"use the data and model settings of {path}, or leave start_from out.",
        )
    tensors = {
        name.replace(".base.", "."): tensor for name, tensor in scorer.model.state_dict().items()
    }
    return Base(digest=Contents.open(path).manifest.base, tensors=tensors)


def start_of(path: Path, seed: int) -> Path:
    """The run or artifact that a run with this seed starts from: `path` itself, or, where that is
    a folder of runs `seed-0`, `seed-1`, …, the one of the same seed.

    Raises:
        UsageError: the folder has no run of that seed.
    """
    if (path / MANIFEST).exists() or (path / "artifact").exists():
        return path
    seeds = sorted(run.name for run in path.glob("seed-*") if run.is_dir())
    own = f"seed-{seed}"
    if seeds and own not in seeds:
        raise UsageError(
            f"start_from: {path} has no run {own}; it has {some(seeds)}.",
            fix="train that seed there too, or name one of the runs: all seeds then start from it.",
        )
    return path / own if seeds else path


def _of_models(there: ModelConfig, here: ModelConfig) -> list[str]:
    names = (name for name in ModelConfig.model_fields if name not in FREE)
    pairs = ((name, getattr(there, name), getattr(here, name)) for name in names)
    return [f"model.{name} is {a!r} there and {b!r} here" for name, a, b in pairs if a != b]


def _of_fields(there: Schema, here: Schema) -> list[str]:
    known = {field.name: field for field in there.fields}
    names = [field.name for field in here.fields]
    if names != list(known):
        return [f"the fields are {', '.join(known)} there and {', '.join(names)} here"]
    return [line for field in here.fields for line in _of_options(known[field.name], field)]


def _of_options(there: Field, here: Field) -> list[str]:
    old, new = there.model_dump(exclude=OPEN), here.model_dump(exclude=OPEN)
    if there.id_type is None and _keeps_values(there):  # older than types: the values are compared
        del new["id_type"]
    return [
        f"field {here.name!r}: {option} is {old[option]!r} there and {new[option]!r} here"
        for option in new
        if old[option] != new[option]
    ]


def _keeps_values(field: Field) -> bool:
    """Whether the meaning of an index is kept value by value, and can be compared so."""
    return field.kind != "numerical" and field.hash_buckets is None


def _of_vocabularies(there: Encoders, here: Encoders) -> list[str]:
    return [
        f"field {field.name!r} has other values there, or in another order"
        for field in here.schema.fields
        if not _same_values(field, there, here)
    ]


def _same_values(field: Field, there: Encoders, here: Encoders) -> bool:
    """Whether each value of a field has the same index in both."""
    if keeps_vocabulary(field, here.schema):
        old, new = there.vocabularies[field.name].values, here.vocabularies[field.name].values
        return old.equals(new)
    if is_domain_field(field, here.schema):
        rules = (
            e.schema.divisions[0].model_dump(exclude={"unseen", "id_type"}) for e in (there, here)
        )
        return bool(next(rules) == next(rules))
    return True
