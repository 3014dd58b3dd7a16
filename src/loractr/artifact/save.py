"""`save`: a finished model → an artifact on disk."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor

from loractr.artifact.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    BASE,
    CONFIG,
    FIRST_VERSION,
    MANIFEST,
    METRICS,
    SCHEMA,
    WHOLE_MODEL,
    Active,
    Contents,
    Manifest,
    PerDomain,
    digest,
    divisions_of,
    mixer_file,
    version_folder,
)
from loractr.artifact.tensors import banks, base_tensors, expert_tensors, mixer_tensors
from loractr.config import RunConfig
from loractr.data.aside import written_aside
from loractr.data.encode import Encoders
from loractr.data.profile import Profile
from loractr.data.profile import write as write_profile
from loractr.errors import ArtifactError, UnknownDomainError, UsageError
from loractr.evaluation import Metrics
from loractr.layers.embedding import Table
from loractr.model import CTRModel
from loractr.schema import Schema


def save(
    model: CTRModel,
    schema: Schema,
    encoders: Encoders,
    path: Path | str,
    *,
    config: RunConfig,
    domain_models: Mapping[str, CTRModel] | None = None,
    metrics: Mapping[str, Metrics] | None = None,
    profile: Profile | None = None,
    replace: bool = False,
) -> None:
    """Write an artifact: everything that scoring raw rows takes, and nothing else.

    It is written aside, flushed to disk and renamed: at `path` there is all of it or what was there
    before. The base model and each domain's adapter have files of their own, so that a domain can
    be added or removed without touching any other.

    Adapter files follow the layout of PEFT (`lora_A`, `lora_B`, alpha = rank). Where a method has
    a row scale or an offset, they stand beside them as they are, not folded in, so that loading is
    exact to the bit; PEFT, which knows neither, then reads an adapter without them.

    Args:
        model: The shared model, adapters attached.
        schema: Fitted schema that it was built with.
        encoders: Encoders of that schema.
        path: Folder to write.
        config: The run that made the model; `model` and `method` are what rebuilds it.
        domain_models: Domain of the method's division → its whole model, of the shape of `model`.
        metrics: Split ("validation", "test") → its metrics; each domain's own are kept beside it.
        profile: What it was trained on, as `prepare` found it; scoring then says what it cannot
            know.
        replace: Whether an artifact that is at `path` may be replaced.

    Raises:
        UsageError: `path` exists and may not be replaced; `encoders` are of another schema.
        UnknownDomainError: `domain_models` names a domain that the schema does not have.
        DataError: the disk is full, or `path` cannot be written.
    """
    path = Path(path)
    _check(schema, encoders, path, replace=replace)
    with written_aside(path) as folder:
        encoders.save(folder)
        _write_json(folder / CONFIG, _plain_config(config))
        _write_json(folder / SCHEMA, _with_widths(schema, model).model_dump(mode="json"))
        _write_tensors(folder / BASE, base_tensors(model))
        if profile is not None:
            write_profile(profile, folder)
        base, measured = digest(folder / BASE), metrics or {}
        active = Active(
            adapters=_write_adapters(folder, model, schema, base, measured),
            domains=_write_domains(folder, domain_models or {}, schema, config, measured),
            mixers=_write_mixers(folder, model, config.method.name),
        )
        _seal(folder, base, active)


def _check(schema: Schema, encoders: Encoders, path: Path, *, replace: bool) -> None:
    if encoders.schema != schema:
        raise UsageError(
            "the encoders were fitted with another schema than the one given.",
            fix="pass the schema and the encoders of one and the same prepared data set.",
        )
    if not path.exists():
        return
    if not replace:
        raise UsageError(f"{path} exists already.", fix="choose another path, or say replace=True.")
    try:
        Contents.open(path)
    except ArtifactError as error:
        raise UsageError(
            f"{path} is not replaced: {error.problem}", fix="choose another path, or remove it."
        ) from error


def _plain_config(config: RunConfig) -> dict[str, Any]:
    """Every setting that rebuilds the model, defaults included, whatever they become one day.

    `data` as it was written: a field's options are laid over those of its source by what is set.
    """
    return config.model_dump(mode="json") | {
        "data": config.data.model_dump(mode="json", exclude_unset=True)
    }


def _with_widths(schema: Schema, model: CTRModel) -> Schema:
    """The schema with the width of pretrained vectors, whose file an artifact does not have."""
    tables = [table for table in model.embedding.tables.values() if isinstance(table, Table)]
    widths = {field.name: table.size for table in tables for field in table.fields}
    fields = tuple(
        field.model_copy(update={"embedding_size": widths[field.name]})
        if field.pretrained is not None
        else field
        for field in schema.fields
    )
    return schema.model_copy(update={"fields": fields})


def _write_adapters(
    folder: Path, model: CTRModel, schema: Schema, base: str, metrics: Mapping[str, Metrics]
) -> dict[str, dict[str, str]]:
    """One folder per domain: its slice of every bank. Returns the active versions."""
    active: dict[str, dict[str, str]] = {}
    for place, division in enumerate(divisions_of(model, schema)):
        ranks = {name: bank.rank for name, bank in banks(model, place)}
        if not ranks:
            continue  # the domains' weights are in the base model
        for expert, domain in enumerate(division.domains):
            where = _new_version(folder, "adapters", division.name, domain, metrics)
            tensors = expert_tensors(model, place, expert, len(division.domains))
            _write_tensors(where / ADAPTER, tensors)
            config = _adapter_config(ranks, base=base, division=division.name, domain=domain)
            _write_json(where / ADAPTER_CONFIG, config)
        active[division.name] = dict.fromkeys(division.domains, FIRST_VERSION)
    return active


def _adapter_config(
    ranks: Mapping[str, int], *, base: str, division: str, domain: str
) -> dict[str, Any]:
    """What PEFT asks for, and under `loractr` what the adapter belongs to."""
    rank = next(iter(ranks.values()))
    others = {name: r for name, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(ranks),
        "loractr": {"base": base, "division": division, "domain": domain},
    }


def _write_mixers(folder: Path, model: CTRModel, name: str) -> dict[str, str]:
    """The file of a method's mixers, where it has some. Returns the version that acts, if any."""
    tensors = mixer_tensors(model)
    if not tensors:
        return {}
    _write_tensors(folder / mixer_file(name, FIRST_VERSION), tensors)
    return {name: FIRST_VERSION} if model.routing.mixed else {}


def _write_domains(
    folder: Path,
    models: Mapping[str, CTRModel],
    schema: Schema,
    config: RunConfig,
    metrics: Mapping[str, Metrics],
) -> dict[str, dict[str, str]]:
    """One folder per whole model. Returns the active versions."""
    if not models:
        return {}
    division = schema.division(config.method.natural(schema))
    unknown = [name for name in models if name not in division.domains]
    if unknown:
        raise UnknownDomainError(division.name, unknown, division.domains)
    for domain, model in models.items():
        where = _new_version(folder, "domains", division.name, domain, metrics)
        _write_tensors(where / WHOLE_MODEL, model.state_dict())
    return {division.name: dict.fromkeys(models, FIRST_VERSION)}


def _new_version(
    folder: Path, kind: PerDomain, division: str, domain: str, metrics: Mapping[str, Metrics]
) -> Path:
    """The folder of a domain's first version, with its metrics where there are some."""
    where = folder / version_folder(kind, division, domain, FIRST_VERSION)
    where.mkdir(parents=True)
    measured = {
        split: asdict(found.divisions[division].domains[domain])
        for split, found in metrics.items()
        if division in found.divisions and domain in found.divisions[division].domains
    }
    if measured:
        _write_json(where / METRICS, measured)
    return where


def _seal(folder: Path, base: str, active: Active) -> None:
    """Write the manifest, and see that every file and folder has reached the disk."""
    paths = sorted(folder.rglob("*"))
    files = {p.relative_to(folder).as_posix(): digest(p) for p in paths if p.is_file()}
    manifest = Manifest(base=base, active=active, files=files)
    _write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    for path in (*paths, folder / MANIFEST, folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(to_bytes(owned, metadata={"format": "pt"}))


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
