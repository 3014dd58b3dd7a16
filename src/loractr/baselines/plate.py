"""PLATE: a prompt of the domain and one of the user as two more fields, tuned without the backbone.

Source: Wang et al., PLATE: A Prompt-Enhanced Paradigm for Multi-Scenario Recommendations,
SIGIR 2023, doi:10.1145/3539618.3591750.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field as Bound
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from loractr.batch import Route
from loractr.errors import ConfigError, some
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.grouped import look_up
from loractr.layers.linear import Linear
from loractr.layers.mlp import MLP
from loractr.method import Attached, Front, Network, OneDivision, train_and_retrain
from loractr.schema import Schema
from loractr.stage import Stage

PROMPTS = ("front.*",)
LINEAR_TERM = ("embedding.*first_order",)
BOUND = 0.01
"""Prompts start uniform in [-0.01, 0.01], the authors' choice for the user prompts."""


class PLATE(OneDivision):
    """Pre-train the backbone on all rows, then tune prompts and linear term for each domain.

    In the first stage the prompts are there but frozen. Then each domain tunes, by itself, its
    prompt, its copy of what makes the user prompt, and its copy of the linear term (where the
    backbone has one); all else stays as it was. Rows of no domain go through the pre-trained
    model, with a domain prompt of 0.
    """

    name: Literal["plate"]
    user_field: str | None = None
    """The field that the user prompt is made from; the schema's first when absent."""
    prompts: PositiveInt = 10
    """Number of vectors that a user prompt is mixed from."""
    prompt_sizes: Annotated[tuple[PositiveInt, ...], Bound(min_length=1)] = (32, 32)
    """Hidden widths of the network that weighs them."""
    temperature: PositiveFloat = 1.0
    """Of the softmax over the weights. The authors' 1e-5 all but picks one vector, and leaves the
    network next to no gradient."""
    per_domain: bool = True
    """Tune each domain by itself, as in the paper. Otherwise all rows in one stage, where domains
    have prompts of their own and share the user prompt and the linear term: one model in all."""
    recipe: Literal["paper", "tuned"] = "paper"
    """paper: one stage of pre-training. tuned: a second one with a smaller step, dropout and weight
    average, where `training` says nothing else about them."""

    def front(self, widths: Widths, schema: Schema, generator: torch.Generator) -> Front:
        """The two prompts.

        Raises:
            ConfigError: `user_field` has no embedding of the common width, or its place among the
                others is not known.
            UsageError: the data has no division.
        """
        return Prompts(
            widths,
            user=place_of(self.user_field or schema.fields[0].name, widths, schema),
            domains=len(schema.division(self.natural(schema)).domains),
            prompts=self.prompts,
            hidden_sizes=self.prompt_sizes,
            temperature=self.temperature,
            generator=generator,
        )

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """Nothing changes in the network itself: the prompts stand before it."""
        return Attached((self.natural(schema),))

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """pretrain, with `tuned` also retrain; prompt, where domains are not tuned one by one."""
        backbone = ("*", *(f"!{glob}" for glob in PROMPTS))
        train, retrain = train_and_retrain(base.model_copy(update={"trains": backbone}))
        pretrain = train.model_copy(update={"name": "pretrain"})
        shared = (pretrain,) if self.recipe == "paper" else (pretrain, retrain)
        return shared if self.per_domain else (*shared, _prompt(base))

    def domain_stages(self, base: Stage, division: str, domain: str) -> tuple[Stage, ...]:
        """prompt, on the domain's rows."""
        if not self.per_domain:
            return ()
        return (_prompt(base).model_copy(update={"rows": (division, domain)}),)

    @property
    def domain_models(self) -> Literal["none", "fresh", "from_base"]:
        """Tuned one by one, every domain has its own copy of the pre-trained model."""
        return "from_base" if self.per_domain else "none"


class Prompts(Front):
    """Appends two vectors to those of the common width: the domain's prompt and the user's.

        p_t       the domain's own vector, 0 for a row of no domain
        p_user  = softmax(MLP(e_user) / temperature) M

    Args:
        widths: What an embedded row holds before it.
        user: Place of the user's field among the vectors of the common width.
        domains: Number of domains D.
        prompts: Number of rows of M.
        hidden_sizes: Widths of the MLP's hidden layers.
        temperature: Of the softmax, > 0.
        generator: Source of the initial weights.

    Shapes: vectors (N, P, K) → (N, P + 2, K); domains (D, K), memory (prompts, K).
    """

    def __init__(
        self,
        widths: Widths,
        *,
        user: int,
        domains: int,
        prompts: int,
        hidden_sizes: Sequence[int],
        temperature: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        size = widths.size
        self.widths = replace(widths, fields=widths.fields + 2)
        self.user = user
        self.temperature = temperature
        self.domains = nn.Parameter(_uniform(domains, size, generator))
        self.memory = nn.Parameter(_uniform(prompts, size, generator))
        self.hidden = MLP(size, hidden_sizes, generator=generator)
        self.scores = Linear(self.hidden.out_features, prompts, generator=generator)

    def forward(self, features: Embedded, route: Route) -> tuple[Embedded, Route]:
        """The same rows with two vectors more; the route as it is."""
        user = features.vectors[:, self.user]
        if route.divisions:
            own = look_up(self.domains, route.acting()[1])
        else:
            own = torch.zeros_like(user)
        scores = self.scores(self.hidden(user, route), route) / self.temperature
        personal = scores.softmax(1) @ self.memory
        prompted = Embedded(
            vectors=torch.cat([features.vectors, own[:, None], personal[:, None]], 1),
            others=features.others,
            numbers=features.numbers,
            first_order=features.first_order,
        )
        return prompted, route


def place_of(name: str, widths: Widths, schema: Schema) -> int:
    """Place of a field's vector among those of the common width, `Embedded.vectors`.

    As `Embedding` has them: what trains and what is frozen in the order of their first fields, and
    in each the categorical fields before the sequences.

    Raises:
        ConfigError: the field is none of them, or ready embeddings of unknown width are.
    """
    fields = [
        field
        for field in (*schema.categorical, *schema.sequences)
        if (field.embedding_size or widths.size) == widths.size
        and (field.pretrained is None or field.embedding_size)
    ]
    trains = [field.trainable for field in fields]
    names = [field.name for field in sorted(fields, key=lambda f: trains.index(f.trainable))]
    if len(names) != widths.fields:
        silent = [f.name for f in schema.fields if f.pretrained and not f.embedding_size]
        raise ConfigError(
            [f"plate must know the width of every field, but {some(silent)} do not tell theirs"],
            fix="set embedding_size of these fields to the width of their ready embeddings.",
        )
    if name not in names:
        raise ConfigError(
            [
                f"method.user_field: field {name!r} has no embedding of the common width"
                f" {widths.size}, which the user prompt is made of; {some(names)} have one"
            ],
            fix="set method.user_field to one of them.",
        )
    return names.index(name)


def _prompt(base: Stage) -> Stage:
    """Prompts and linear term, on all rows."""
    return base.model_copy(update={"name": "prompt", "trains": (*PROMPTS, *LINEAR_TERM)})


def _uniform(rows: int, size: int, generator: torch.Generator | None) -> Tensor:
    return torch.empty(rows, size).uniform_(-BOUND, BOUND, generator=generator)
