"""`RunConfig`: what a YAML file holds; `load_config` reports all its problems at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

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
from loractr.config.problems import problems
from loractr.config.text import read_values, spelt_out
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
    with: it takes the place of what the recipe's first stage would train. Of a folder of runs
    `seed-0`, `seed-1`, …, the one of this run's seed."""
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
    return parse_config(read_values(path, overrides))


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Validate plain values. `method: mlora` is short for `method: {name: mlora}`, as a name is for
    the kind of `data.split` and the column of `data.label`.

    Raises:
        ConfigError: with every problem found, each with its place and, for a misspelt key, the
            name that was probably meant.
    """
    values = spelt_out(values)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(problems(error, RunConfig, values)) from None
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
