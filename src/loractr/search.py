"""Sizes that give every method of a comparison the same number of weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from loractr.config import RunConfig
from loractr.errors import AdapterError, ConfigError
from loractr.model import build, count_parameters
from loractr.schema import Schema

HALVINGS = 60
"""Of the interval that the factor lies in; hidden sizes up to 10⁹ have no more to tell apart."""


def match_parameters(
    config: RunConfig,
    schema: Schema,
    target: int,
    *,
    within: float = 0.05,
    pretrained: Mapping[str, Tensor] | None = None,
) -> RunConfig:
    """The run with `hidden_sizes` scaled until its networks have about `target` weights.

        hidden_sizes[i] ← max(1, ⌊factor · hidden_sizes[i] + ½⌋)        one factor for all layers

    Counted are all weights but the embeddings (tables and linear term): backbone and output,
    adapters, mixers, what domains have of their own. They are summed over all models that the
    method makes: D for `single`, the shared one and D copies for `finetune` (which makes none for a
    domain without validation rows; the schema does not know of such), the shared one and D times
    the prompts for `plate`. Embeddings are left out because no hidden size can make up for them:
    `single` has D times the tables of `mix`, often more than all else together.

    Whatever follows the hidden sizes is scaled with them, such as ranks by a divisor, or towers and
    experts at their defaults. What has a size of its own in the configuration keeps it.

    Args:
        config: The run. Its own `model.parameters` plays no part.
        schema: Fitted schema.
        target: The number of weights to reach.
        within: How far from `target` the number may be, as a share of it.
        pretrained: Field name → ready vectors, for fields with `pretrained`.

    Returns: `config` with the sizes that come nearest, and without `model.parameters`: it says what
        was found, not what was looked for. The seed plays no part.

    Cost: some ten models without memory (on the "meta" device), however large the tables.

    Raises:
        ConfigError: no factor comes that near; the nearest number is told.
        AdapterError: an adapter does not fit the hidden sizes as they are written.
        LoractrError: whatever else keeps `build` from making the model.
    """
    networks = _Networks(config, schema, pretrained)
    low, high = _around(networks, target)
    candidates = [factor for factor in (low, high) if networks.refusal(factor) is None]
    nearest = min(candidates, key=lambda factor: abs(networks.weights(factor) - target))
    if abs(networks.weights(nearest) - target) > within * target:
        raise _out_of_reach(networks, target, within, nearest, networks.refusal(low))
    return networks.scaled(nearest)


class _Networks:
    """All networks of a run but for their embeddings, by the factor on their hidden sizes."""

    def __init__(
        self, config: RunConfig, schema: Schema, pretrained: Mapping[str, Tensor] | None
    ) -> None:
        self.config = config
        self.schema = schema
        self.pretrained = pretrained
        self.owners = len(config.method.owners(schema))
        self.known: dict[tuple[int, ...], int | AdapterError] = {}

    def sizes(self, factor: float) -> tuple[int, ...]:
        """The hidden sizes, scaled."""
        return tuple(max(1, int(factor * size + 0.5)) for size in self.config.model.hidden_sizes)

    def scaled(self, factor: float) -> RunConfig:
        """The run with these hidden sizes."""
        changes = {"hidden_sizes": self.sizes(factor), "parameters": None}
        return self.config.model_copy(
            update={"model": self.config.model.model_copy(update=changes)}
        )

    def weights(self, factor: float) -> int:
        """How many weights there are (AdapterError where an adapter does not fit)."""
        found = self._found(factor)
        if isinstance(found, AdapterError):
            raise found
        return found

    def refusal(self, factor: float) -> AdapterError | None:
        """Why there is no such network: layers too narrow for an adapter's rank."""
        found = self._found(factor)
        return found if isinstance(found, AdapterError) else None

    def _found(self, factor: float) -> int | AdapterError:
        sizes = self.sizes(factor)
        if sizes not in self.known:
            self.known[sizes] = self._count(factor)
        return self.known[sizes]

    def _count(self, factor: float) -> int | AdapterError:
        try:
            with torch.device("meta"):
                model = build(self.scaled(factor), self.schema, pretrained=self.pretrained)
        except AdapterError as error:
            return error
        counts = count_parameters(self.config, model, self.owners)
        return counts["total"] - counts["embedding"]


def _around(networks: _Networks, target: int) -> tuple[float, float]:
    """Factors next to each other, the weights of one below and of the other not below `target`;
    where there are no such two, the one at the end of what can be had is the second."""

    def short(factor: float) -> bool:
        return networks.refusal(factor) is not None or networks.weights(factor) < target

    low, high = 0.0, 1.0
    while networks.weights(high) < target:
        low, high = high, 2 * high
        if networks.weights(high) == networks.weights(low):  # no hidden size is read at all
            return low, low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return low, high


def _out_of_reach(
    networks: _Networks,
    target: int,
    within: float,
    nearest: float,
    refusal: AdapterError | None,
) -> ConfigError:
    sizes, found = networks.sizes(nearest), networks.weights(nearest)
    reason = ""
    if refusal is not None:
        reason = f"; the target is too small for the adapters: {refusal.problem}"
    elif found > target and max(sizes) == 1:
        reason = "; the target is too small: what hidden_sizes do not scale has more already"
    return ConfigError(
        [
            f"model.parameters: method {networks.config.method.name!r} on backbone"
            f" {networks.config.model.backbone!r} cannot have {target:,} weights (embeddings aside)"
            f" within {within:.0%}; the nearest number is {found:,}, with hidden_sizes"
            f" {list(sizes)}{reason}"
        ],
        fix=f"ask for about {found:,}, or change the sizes that the method has of its own.",
    )
