"""`RunConfig`: what a YAML file holds; `load_config` reports all its problems at once."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import Field as Bound
from pydantic import (
    NonNegativeFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from loractr.adapters.mlora import MLoRA
from loractr.adapters.moe_mlora import MoEMLoRA
from loractr.adapters.multilora import MultiLoRA, MultiLoRAAdd, MultiLoRAAvg
from loractr.adapters.shared_adapter import SharedAdapter
from loractr.adapters.singlelora import SingleLoRA
from loractr.backbones.config import ModelConfig
from loractr.baselines.finetune import Finetune
from loractr.baselines.hamur import HAMUR
from loractr.baselines.mix import Mix
from loractr.baselines.mmoe import MMoE
from loractr.baselines.plate import PLATE
from loractr.baselines.ple import PLE
from loractr.baselines.retune import Retune
from loractr.baselines.shared_bottom import SharedBottom
from loractr.baselines.single import Single
from loractr.baselines.star import STAR
from loractr.data.config import DataConfig
from loractr.errors import ConfigError, some
from loractr.method import Method
from loractr.native import Choice
from loractr.schema import Record
from loractr.stage import Settings, Stage

METHODS: dict[str, type[Method]] = {
    "mix": Mix,
    "single": Single,
    "finetune": Finetune,
    "retune": Retune,
    "mlora": MLoRA,
    "moe_mlora": MoEMLoRA,
    "singlelora": SingleLoRA,
    "multilora": MultiLoRA,
    "multilora_add": MultiLoRAAdd,
    "multilora_avg": MultiLoRAAvg,
    "shared_adapter": SharedAdapter,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
    "star": STAR,
    "hamur": HAMUR,
    "plate": PLATE,
}
"""Every method by its name."""

MethodConfig = Annotated[
    Mix
    | Single
    | Finetune
    | Retune
    | SingleLoRA
    | SharedAdapter
    | MultiLoRA
    | MultiLoRAAdd
    | MultiLoRAAvg
    | MLoRA
    | MoEMLoRA
    | STAR
    | HAMUR
    | PLATE
    | SharedBottom
    | MMoE
    | PLE,
    Bound(discriminator="name"),
]


class StageSettings(Settings):
    """Settings that one stage has of its own; what is not written comes from `training`."""

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A default written out would override `training` when it is read again."""
        return {key: value for key, value in dump(self).items() if key in self.model_fields_set}


class TrainingConfig(Settings):
    """How to train. Every stage of the method's recipe starts from these settings."""

    stages: dict[str, StageSettings] = {}
    """Stage name → settings of its own, e.g. {adapt: {learning_rate: 1e-4}}."""
    checkpoint_minutes: NonNegativeFloat = 5.0
    """Minutes between two checkpoints within an epoch; every validation makes one as well, but for
    those of single domains in an independent stage, of which there may be thousands."""


class RunConfig(Record):
    """One run: data, model, method, training, seed."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    method: MethodConfig
    training: TrainingConfig = TrainingConfig()
    seed: Annotated[int, Bound(ge=0, lt=2**63)] = 0
    """Initialisation and order of rows only; the split has a seed of its own."""
    start_from: Path | None = None
    """A finished run or artifact, of the same fields and backbone, whose base model this run starts
    with: it takes the place of what the recipe's first stage would train."""
    kernels: Choice = "auto"
    """Compiled kernels (`loractr kernels build`) where they are built, `native` to insist on them,
    `torch` to do without. They compute the same up to rounding."""

    @model_validator(mode="after")
    def _divisions_exist(self) -> Self:
        known = self.data.divisions
        missing = [name for name in self.method.divisions if known and name not in known]
        if missing:
            raise ValueError(
                f"method.divisions names {some(missing)}; data.divisions has {some(known)}"
            )
        return self

    def stages(self) -> tuple[Stage, ...]:
        """The recipe of the shared model, every stage with its own settings.

        Raises:
            ConfigError: `training.stages` names a stage that the recipe does not have.
        """
        return self._with_own_settings(self.method.stages(self._base(), norm=self.model.batch_norm))

    def domain_stages(self, division: str, domain: str) -> tuple[Stage, ...]:
        """The recipe of one domain's whole model, where the method has such models."""
        return self._with_own_settings(self.method.domain_stages(self._base(), division, domain))

    def check_stages(self) -> None:
        """Check that every stage of `training.stages` is part of the recipe, and that the settings
        of each stage can be had together (ConfigError)."""
        stages = (*self.stages(), *self.domain_stages("", ""))
        names = [stage.name for stage in stages]
        known = some(names)
        problems = [
            f"training.stages: method {self.method.name!r} has no stage {name!r}; it has {known}"
            for name in self.training.stages
            if name not in names
        ]
        problems += [
            f"training, in stage {stage.name!r}: {conflict}"
            for stage in stages
            for conflict in stage.conflicts()
        ]
        if self.start_from is not None:
            problems += self._nothing_to_start()
        if problems:
            raise ConfigError(problems)

    def _nothing_to_start(self) -> list[str]:
        """What keeps the recipe from starting with a finished model, in words."""
        if not self.stages():
            return [f"start_from: method {self.method.name!r} trains no shared model"]
        if len(self.stages()) == 1 and self.method.domain_models == "none":
            return [
                f"start_from takes the place of stage {self.stages()[0].name!r}, which is all that"
                f" the recipe of method {self.method.name!r} has; leave start_from out, or choose a"
                " method or recipe that trains on from there"
            ]
        return []

    def _base(self) -> Stage:
        settings = self.training.model_dump(exclude={"stages", "checkpoint_minutes"})
        return Stage(name="", **settings)

    def _with_own_settings(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        def own(stage: Stage) -> dict[str, Any]:
            settings = self.training.stages.get(stage.name)
            if settings is None:
                return {}
            return {key: getattr(settings, key) for key in settings.model_fields_set}

        return tuple(stage.model_copy(update=own(stage)) for stage in stages)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply overrides like `training.epochs=3`, validate.

    Raises:
        ConfigError: the file cannot be read, or with every problem found in it.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} is not valid YAML: {error}"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{path} must hold `data:`, `method:` and so on, not {values!r}"])
    for override in overrides:
        _override(values, override)
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Validate plain values.

    Raises:
        ConfigError: with every problem found, each with its place and, for a misspelt key, the
            name that was probably meant.
    """
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_problems(error, values)) from None
    config.check_stages()
    return config


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML: every setting, defaults included.

    Of a field and of a stage only what was written: the rest comes from the source and from
    `training`, and must come from there when the text is read again.
    """
    values = config.model_dump(mode="json", exclude_none=True)
    training = config.training.model_dump(mode="json")
    values["training"]["stages"] = training["stages"]  # here null is a choice
    if config.data.fields is not None:
        values["data"]["fields"] = [
            one if isinstance(one, str) else one.model_dump(mode="json", exclude_unset=True)
            for one in config.data.fields
        ]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


class _UniqueKeys(yaml.SafeLoader):
    """YAML itself would keep the last of two equal keys, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if each key is there once."""
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                problem = f"key {key.value!r} is there more than once"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError([f"--set {override!r} must look like training.epochs=3"])
    place: Any = values
    for key in keys[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError([f"--set {override!r}: {key!r} holds a value, not settings"])
    try:
        place[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"--set {override!r}: {text!r} is not valid YAML"]) from error


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


def _problems(error: ValidationError, values: dict[str, Any]) -> Iterator[str]:
    """One line for each place, in the words of the file.

    Where a value may be of several kinds, pydantic reports what each of them finds wrong: the kind
    that got deepest is the one that was meant; of equally deep ones all are told.
    """
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        place, message = _problem(item, values)
        found.setdefault(place, []).append(message)
    for place, messages in found.items():
        if not any(other.startswith(f"{place}.") for other in found):
            yield f"{place}: {'; or '.join(dict.fromkeys(messages))}"


def _problem(item: Any, values: dict[str, Any]) -> tuple[str, str]:
    """Place and message of one of pydantic's errors."""
    place, owners = _locate(item["loc"], values, missing=item["type"] == "missing")
    if item["type"] == "extra_forbidden":
        known = sorted({name for owner in owners for name in owner.model_fields})
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return place, f"unknown key; {hint}"
    if item["type"] == "missing":
        return place, "missing"
    if item["type"] == "value_error":
        return place or "config", str(item["ctx"]["error"])
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _bad_tag(place, item)
    message = _WORDS.get(item["type"]) or _lower(item["msg"])
    return place, f"{message}, not {_shown(item['input'])}"


def _bad_tag(place: str, item: Any) -> tuple[str, str]:
    place = f"{place}.{str(item['ctx']['discriminator']).strip(_QUOTE)}"
    if "tag" not in item["ctx"]:
        return place, "missing"
    tag, known = item["ctx"]["tag"], item["ctx"]["expected_tags"].replace(_QUOTE, "").split(", ")
    close = difflib.get_close_matches(tag, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return place, f"unknown {tag!r}; {hint}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _locate(
    loc: tuple[int | str, ...], values: Any, *, missing: bool
) -> tuple[str, set[type[Record]]]:
    """The place as written in YAML, and the classes that may stand where its last key is.

    pydantic's location also names the kinds of a union, which no one wrote: what is not in
    `values` is left out, but for the last key of what is missing.
    """
    owners: set[type[Record]] = {RunConfig}
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
        written.append(str(part))
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
