"""STAR: the weights of each layer are a shared matrix times, element by element, the domain's own.

Source: Sheng et al., One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain
CTR Prediction, CIKM 2021, doi:10.1145/3459637.3481941.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field as Bound
from pydantic import PositiveInt
from torch import Tensor, nn

from loractr.batch import Groups, Route
from loractr.layers.domain import groups_of, own_or_rest
from loractr.layers.dropout import relu_dropout
from loractr.layers.grouped import look_up
from loractr.layers.linear import Linear
from loractr.layers.mlp import MLP, Block
from loractr.layers.norm import group_moments, normed_by_kernels
from loractr.method import Attached, Network, TrainedOnAllRows
from loractr.schema import Schema


class STAR(TrainedOnAllRows):
    """Partitioned norm, star layers and an auxiliary network in the place of the deep tower.

    logit = star head([…, star layers(partitioned norm(x))]) + auxiliary head(MLP([x ; domain]))

    Here x is the tower's input, and … stands for what the backbone puts beside its tower (crosses,
    attention). Where the model has batch norm, the layers' norms are partitioned ones too. A fresh
    one treats all domains alike but for the auxiliary network: the domains' own weights are 1, and
    their biases 0. A row of no domain goes through the shared weights alone, with the mean of the
    domains' statistics and a domain embedding of 0.
    """

    name: Literal["star"]
    auxiliary_sizes: Annotated[tuple[PositiveInt, ...], Bound(min_length=1)] = (32,)
    """Widths of the auxiliary network's layers; it sees the tower's input and the domain."""
    domain_embedding_size: PositiveInt = 16
    """Width of the auxiliary network's embedding of the domain."""

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """Replace the tower and the head."""
        division = self.natural(schema)
        domains = len(schema.division(division).domains)
        backbone, tower = network.backbone, network.backbone.tower
        assert isinstance(tower, MLP)
        backbone.tower = StarTower(
            tower,
            domains,
            auxiliary_sizes=self.auxiliary_sizes,
            domain_embedding_size=self.domain_embedding_size,
            generator=generator,
        )
        main, auxiliary = backbone.out_features, self.auxiliary_sizes[-1]
        network.head = StarHead(main, auxiliary, domains, generator=generator)
        backbone.out_features = main + auxiliary
        return Attached((division,))


class StarLinear(nn.Module):
    """A linear layer whose weights are a shared matrix times the domain's own, and biases added up.

        y[n] = (W ⊙ W_t) x[n] + b + b_t        t the row's domain
        y[n] = W x[n] + b                      for a row of no domain

    A fresh one is the same for all domains: W Glorot normal, W_t = 1, b = b_t = 0.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        domains: Number of domains D.
        generator: Source of the initial weights.

    Shapes: x (N, in) → (N, out); own_weight (D, out, in), own_bias (D, out).
    Cost: one small product per domain that has rows; all W ⊙ W_t, once per batch.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        domains: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.own_weight = nn.Parameter(torch.ones(domains, out_features, in_features))
        self.own_bias = nn.Parameter(torch.zeros(domains, out_features))
        nn.init.xavier_normal_(self.weight, generator=generator)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """Each row by its domain's layer."""
        bias = torch.cat([self.bias[None], self.bias + self.own_bias])
        y = own_or_rest(x, self.weight * self.own_weight, groups, lambda: self.weight)
        return y + bias.index_select(0, groups.expert + 1)


class PartitionedNorm(nn.Module):
    """Batch norm with statistics per domain, and with shared and own weights and biases.

        y = (weight ⊙ own_weight_t) ⊙ (x - mean_t) / √(var_t + eps) + (bias + own_bias_t)

    In training, mean_t and (biased) var_t are those of the domain's rows in the batch, and the
    domain's running ones move towards them, as in `BatchNorm`; in evaluation they are the running
    ones. A domain of fewer than two rows uses its running ones and leaves them alone, and so does a
    norm none of whose parameters train. Rows of no domain take own_weight 1, own_bias 0 and the
    mean of the domains' running means and variances, in training too.

    Args:
        features: Number of features H.
        domains: Number of domains D.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.

    Shapes: x (N, H) → (N, H); own_weight, own_bias, running_mean, running_var (D, H).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, features: int, domains: int, *, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.own_weight = nn.Parameter(torch.ones(domains, features))
        self.own_bias = nn.Parameter(torch.zeros(domains, features))
        self.register_buffer("running_mean", torch.zeros(domains, features))
        self.register_buffer("running_var", torch.ones(domains, features))

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """Each row by its domain's norm."""
        trains = self.training and any(p.requires_grad for p in self.parameters())
        own_weight, own_bias = self.weight * self.own_weight, self.bias + self.own_bias
        y = normed_by_kernels(x, groups, own_weight, own_bias, self, trains=trains)
        if y is not None:
            return y
        rest = torch.stack([self.running_mean.mean(0), self.running_var.mean(0)])[:, None]
        own = self._of_batch(x, groups) if trains else (self.running_mean, self.running_var)
        mean, variance = torch.cat([rest, torch.stack(own)], 1)
        weight = torch.cat([self.weight[None], own_weight])
        bias = torch.cat([self.bias[None], own_bias])
        scale = weight * torch.rsqrt(variance + self.eps)
        shift, place = bias - mean * scale, groups.expert + 1
        return torch.addcmul(shift.index_select(0, place), x, scale.index_select(0, place))

    def _of_batch(self, x: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """Means and variances of the domains' rows; the running ones where there are too few."""
        return group_moments(x, groups, self.running_mean, self.running_var, self.momentum)


class StarBlock(nn.Module):
    """One hidden layer: y = Dropout(ReLU(Norm((W ⊙ W_t) x + b + b_t))), built after a plain one."""

    def __init__(self, plain: Block, domains: int, generator: torch.Generator | None) -> None:
        super().__init__()
        wide, tall = plain.linear.in_features, plain.linear.out_features
        self.linear = StarLinear(wide, tall, domains, generator=generator)
        self.norm = None if plain.norm is None else PartitionedNorm(tall, domains)
        self.drops_first = plain.dropout is None
        self.dropout = plain.linear.dropout if plain.dropout is None else plain.dropout

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(N, in) → (N, out)."""
        h: Tensor = self.linear(x, groups)
        if self.drops_first and self.dropout is not None:
            h = self.dropout(h)
        if self.norm is not None:
            h = self.norm(h, groups)
        return relu_dropout(h, None if self.drops_first else self.dropout)


class StarTower(nn.Module):
    """Star layers on the normalised input, and beside them an auxiliary network on the plain one.

        [star layers(partitioned norm(x)) ; MLP([x ; e_t])]        e_t = 0 for a row of no domain

    Args:
        plain: The tower in whose place it stands: its widths, dropout and norms.
        domains: Number of domains D.
        auxiliary_sizes: Widths of the auxiliary network's layers.
        domain_embedding_size: Width of e_t.
        generator: Source of the initial weights.

    Shapes: x (N, in) → (N, out + auxiliary_sizes[-1]).
    """

    def __init__(
        self,
        plain: MLP,
        domains: int,
        *,
        auxiliary_sizes: Sequence[int],
        domain_embedding_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        blocks = [block for block in plain.children() if isinstance(block, Block)]
        self.norm = PartitionedNorm(plain.in_features, domains)
        self.main = nn.ModuleList(StarBlock(block, domains, generator) for block in blocks)
        embedding = torch.empty(domains, domain_embedding_size)
        self.domains = nn.Parameter(embedding.normal_(std=0.01, generator=generator))
        self.auxiliary = MLP(
            plain.in_features + domain_embedding_size,
            auxiliary_sizes,
            dropout=plain.dropout,
            dropout_position=plain.dropout_position,
            generator=generator,
        )
        self.in_features = plain.in_features
        self.out_features = plain.out_features + auxiliary_sizes[-1]

    def forward(self, x: Tensor, route: Route) -> Tensor:
        """Main and auxiliary hidden layer, side by side."""
        groups = groups_of(route, x, len(self.domains))
        seen = torch.cat([x, look_up(self.domains, groups)], 1)
        h = self.norm(x, groups)
        for block in self.main:
            h = block(h, groups)
        return torch.cat([h, self.auxiliary(seen, route)], 1)


class StarHead(nn.Module):
    """The last star layer and the last layer of the auxiliary network, added up to one logit.

    Args:
        main: Width of what the star layer reads.
        auxiliary: Width of what the auxiliary network's layer reads, which stands last.
        domains: Number of domains D.
        generator: Source of the initial weights.

    Shapes: vector (N, main + auxiliary) → (N, 1).
    """

    def __init__(
        self,
        main: int,
        auxiliary: int,
        domains: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.domains = domains
        self.main = StarLinear(main, 1, domains, generator=generator)
        self.auxiliary = Linear(auxiliary, 1, generator=generator)

    def forward(self, vector: Tensor, route: Route) -> Tensor:
        """Logits (N, 1)."""
        width = self.main.in_features
        groups = groups_of(route, vector, self.domains)
        main: Tensor = self.main(vector[:, :width], groups)
        auxiliary: Tensor = self.auxiliary(vector[:, width:], route)
        return main + auxiliary
