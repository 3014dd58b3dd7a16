"""`load`: an artifact on disk → a `Scorer`."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError

from loractr.artifact.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    BASE,
    CONFIG,
    ENCODERS,
    SCHEMA,
    WHOLE_MODEL,
    Contents,
    divisions_of,
    mixer_file,
)
from loractr.artifact.scorer import Scorer
from loractr.artifact.tensors import banks, base_tensors, expert_tensors, fill, mixer_tensors, read
from loractr.config import RunConfig, parse_config
from loractr.data.encode import Encoders
from loractr.data.profile import PROFILE, Profile
from loractr.data.profile import read as read_profile
from loractr.errors import AdapterError, ArtifactError, ConfigError
from loractr.model import CTRModel, build
from loractr.schema import Schema


def load(path: Path | str) -> Scorer:
    """Read an artifact that `save` wrote: for the same rows in the same batches, its probabilities
    are those of the model in memory, bit by bit.

    Every file that is read is first checked against its SHA-256 in the manifest; versions that are
    not active are not read. Nothing is unpickled.

    Raises:
        ArtifactError: there is no artifact at `path`; a file of it is missing, truncated or
            changed; an adapter belongs to another base model; or it is of a format that this
            version of loractr cannot read.
    """
    contents = Contents.open(Path(path))
    config, schema = _config(contents), _schema(contents)
    model = _base_model(contents, config, schema)
    domain_models = _domain_models(contents, model, config, schema)
    _fill_experts(contents, model, schema)
    _fill_mixers(contents, model)
    return Scorer(
        config=config,
        encoders=_encoders(contents, schema),
        model=model,
        domain_models=domain_models,
        profile=_profile(contents),
    )


def _config(contents: Contents) -> RunConfig:
    try:
        return parse_config(contents.json(CONFIG))
    except ConfigError as error:
        raise _foreign(contents, CONFIG, error) from error


def _schema(contents: Contents) -> Schema:
    try:
        return Schema.model_validate(contents.json(SCHEMA))
    except ValidationError as error:
        raise _foreign(contents, SCHEMA, error) from error


def _profile(contents: Contents) -> Profile | None:
    if PROFILE not in contents.manifest.files:  # older artifacts, or data that had none
        return None
    try:
        return read_profile(contents.checked(PROFILE).parent)
    except ValidationError as error:
        raise _foreign(contents, PROFILE, error) from error


def _foreign(contents: Contents, name: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{contents.path / name} cannot be used by this version of loractr: {error}",
        fix="load it with the version of loractr that wrote it.",
    )


def _encoders(contents: Contents, schema: Schema) -> Encoders:
    for name in contents.manifest.files:
        if name.startswith(ENCODERS):
            contents.checked(name)
    return Encoders.load(contents.path, schema)


def _base_model(contents: Contents, config: RunConfig, schema: Schema) -> CTRModel:
    """The model of `config` in evaluation mode: the saved base, adapters not yet filled."""
    vectors = {
        field.name: torch.zeros(field.size, field.embedding_size or config.model.embedding_size)
        for field in schema.fields
        if field.pretrained is not None
    }
    try:
        model = build(config, schema, pretrained=vectors)
    except (ConfigError, AdapterError) as error:
        raise _foreign(contents, CONFIG, error) from error
    path = contents.checked(BASE)
    stored = read(path)
    if "head.weight" in stored:
        model.to(stored["head.weight"].dtype)
    fill(base_tensors(model), path, stored)
    return model.eval()


def _domain_models(
    contents: Contents, base: CTRModel, config: RunConfig, schema: Schema
) -> dict[str, CTRModel]:
    """Domain → its whole model, in evaluation mode."""
    if not contents.manifest.active.domains:
        return {}
    division = schema.division(config.method.natural(schema))
    models = {}
    for (_, domain), folder in contents.active("domains", [division]).items():
        path = contents.checked(f"{folder}/{WHOLE_MODEL}")
        models[domain] = deepcopy(base)
        fill(models[domain].state_dict(), path, read(path))
    return models


def _fill_experts(contents: Contents, model: CTRModel, schema: Schema) -> None:
    """Put every domain's active adapter in its place in the banks."""
    divisions = divisions_of(model, schema)
    divisions = [one for place, one in enumerate(divisions) if any(banks(model, place))]
    folders = contents.active("adapters", divisions, complete=True)
    for place, division in enumerate(divisions):
        for expert, domain in enumerate(division.domains):
            folder = folders[division.name, domain]
            _check_owner(contents, f"{folder}/{ADAPTER_CONFIG}", division.name, domain)
            path = contents.checked(f"{folder}/{ADAPTER}")
            own = expert_tensors(model, place, expert, len(division.domains))
            fill(own, path, read(path))


def _fill_mixers(contents: Contents, model: CTRModel) -> None:
    """Put the active mixers in their places; without active ones the experts act unmixed."""
    tensors, active = mixer_tensors(model), contents.manifest.active.mixers
    for name, version in active.items():
        path = contents.checked(mixer_file(name, version))
        fill(tensors, path, read(path))
    if tensors:
        model.routing = replace(model.routing, mixed=bool(active))


def _check_owner(contents: Contents, name: str, division: str, domain: str) -> None:
    found = contents.json(name).get("loractr")
    wanted = {"base": contents.manifest.base, "division": division, "domain": domain}
    if found != wanted:
        raise ArtifactError(
            f"{contents.path / name}: this adapter belongs to {found}, not to {wanted}.",
            fix="put back the adapter that was trained for this base model, division and domain.",
        )
