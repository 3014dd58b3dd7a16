import math

import numpy as np
import pytest
import torch

from loractr.batch import Route
from loractr.layers.dropout import Rectifier
from loractr.layers.linear import Linear
from loractr.layers.mlp import MLP


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_layers_have_the_names_that_globs_expect():
    tower = MLP(5, [4, 3], batch_norm=True)
    names = [name for name, module in tower.named_modules() if name and not list(module.children())]
    assert names == [
        *("0.linear", "0.norm", "0.dropout"),
        *("1.linear", "1.norm", "1.dropout"),
    ]
    assert type(tower.get_submodule("1.linear")) is Linear


def test_the_tower_equals_its_formula_in_plain_loops():
    tower = MLP(5, [4, 3], generator=generator()).double().eval()
    torch.nn.init.normal_(tower.get_submodule("0.linear").bias)
    x = torch.randn(6, 5).double()
    state = {name: tensor.tolist() for name, tensor in tower.state_dict().items()}
    for n in range(6):
        h = x[n].tolist()
        for layer in range(2):
            weight, bias = state[f"{layer}.linear.weight"], state[f"{layer}.linear.bias"]
            h = [
                max(0.0, math.fsum(w * v for w, v in zip(row, h, strict=True)) + b)
                for row, b in zip(weight, bias, strict=True)
            ]
        np.testing.assert_allclose(tower(x)[n].detach().numpy(), h, rtol=1e-12)


def test_the_norm_stands_before_the_activation():
    tower = MLP(5, [400], batch_norm=True, generator=generator())
    out = tower(torch.randn(64, 5))
    # normalised around zero, then cut: about half of all values are exactly zero
    assert (out == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert out.min() == 0


def test_dropout_after_the_activation_scales_what_it_keeps():
    tower = MLP(5, [400], dropout=0.5, generator=generator())
    x = torch.randn(1, 5)
    dropped, whole = tower(x), tower.eval()(x)
    kept = dropped != 0
    assert 0 < kept.sum() < (whole != 0).sum()
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


def test_on_the_shared_path_dropout_leaves_an_adapters_update_alone():
    class Plus(torch.nn.Module):
        """Adds 7 after the base, as an adapter would add its update."""

        def __init__(self, base: Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor, route: Route | None, ending: Rectifier) -> torch.Tensor:
            return ending(self.base(x, route) + 7)

    tower = MLP(5, [400], dropout=0.9, dropout_position="shared_path", generator=generator())
    block = tower.get_submodule("0")
    block.linear = Plus(block.linear)
    shared = block.linear.base.weight.abs()
    with torch.no_grad():
        block.linear.base.weight.copy_(shared)
    out = tower(torch.ones(1, 5))
    assert out.min() == 7  # a dropped element keeps the update
    assert 0.8 < (out == 7).float().mean() < 1


def test_every_layer_is_given_the_route_and_its_ending():
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, base: Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor, route: Route | None, ending: Rectifier) -> torch.Tensor:
            seen.append((route, ending.dropout))
            return ending(self.base(x, route))

    tower = MLP(5, [4, 3])
    for block in tower.children():
        block.linear = Spy(block.linear)
    route = Route.hard(torch.tensor([0, 1]))
    tower(torch.randn(2, 5), route)
    assert seen == [(route, block.dropout) for block in tower.children()]


def test_parameters_are_weights_biases_and_two_vectors_a_norm():
    tower = MLP(113, [256, 128], batch_norm=True)
    weights = 113 * 256 + 256 * 128
    assert sum(p.numel() for p in tower.parameters()) == weights + (256 + 128) * 3


def test_an_empty_batch_passes_through_in_training():
    tower = MLP(5, [4, 3], batch_norm=True, dropout=0.5)
    assert tower(torch.empty(0, 5)).shape == (0, 3)


def test_a_tower_without_layers_is_refused():
    with pytest.raises(ValueError, match="at least one hidden layer"):
        MLP(5, [])
