"""Compiled attention, CIN and inner products against torch's operations and finite differences.

That torch's operations are right is shown in tests/layers, against loops of the papers' formulas.
"""

import pytest
import torch

from loractr.layers.attention import attend
from loractr.layers.cin import CIN
from loractr.layers.fm import fm
from native.agreement import gap

pytestmark = pytest.mark.usefixtures("kernels")

PRECISE = {torch.float32: 3e-6, torch.float64: 1e-13}


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize(
    ("rows", "fields", "heads", "size"),
    [(7, 3, 4, 8), (5, 9, 2, 16), (4, 2, 3, 5), (3, 1, 1, 1), (0, 3, 2, 8), (600, 4, 4, 8)],
)
def test_attention_agrees_with_torchs_operations(rows, fields, heads, size, dtype):
    q, k, v = (normal(rows, fields, heads * size, dtype=dtype, seed=s) for s in range(3))
    assert gap(lambda q, k, v: attend(q, k, v, heads), q, k, v) < PRECISE[dtype]


def test_large_scores_do_not_overflow():
    q, k, v = (100 * normal(6, 3, 16, dtype=torch.float32, seed=s) for s in range(3))
    assert attend(q, k, v, 2).isfinite().all()


def test_gradients_of_attention_are_those_of_finite_differences():
    inputs = [normal(3, 4, 6, seed=s).requires_grad_() for s in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, 2), inputs)


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("split_half", [True, False])
@pytest.mark.parametrize("sizes", [(6,), (6, 4), (8, 6, 5)])
@pytest.mark.parametrize(
    ("rows", "fields", "width"), [(7, 3, 8), (4, 1, 5), (0, 3, 4), (900, 4, 8)]
)
def test_cin_agrees_with_torchs_operations(rows, fields, width, sizes, split_half, dtype):
    generator = torch.Generator().manual_seed(3)
    cin = CIN(fields, sizes, split_half=split_half, generator=generator).to(dtype)
    x = normal(rows, fields, width, dtype=dtype)
    weights = [p.detach() for p in cin.parameters()]
    names = [name for name, _ in cin.named_parameters()]

    def applied(x, *weights):
        return torch.func.functional_call(cin, dict(zip(names, weights, strict=True)), (x,))

    assert gap(applied, x, *weights) < 20 * PRECISE[dtype]


@pytest.mark.parametrize("split_half", [True, False])
def test_gradients_of_cin_are_those_of_finite_differences(split_half):
    cin = CIN(3, (4, 4, 3), split_half=split_half, generator=torch.Generator().manual_seed(1))
    x = normal(4, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(cin.double(), x)


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize(
    ("rows", "fields", "size"),
    [
        (7, 3, 8),
        (4, 2, 64),
        (5, 9, 65),
        (3, 4, 200),
        (6, 1, 16),
        (3, 0, 8),
        (0, 3, 8),
        (3000, 5, 8),
    ],
)
def test_sums_of_inner_products_agree_with_torchs_operations(rows, fields, size, dtype):
    # with fewer than two fields the sum is 0, and a gap relative to it would be rounding
    assert gap(lambda x: 1 + fm(x), normal(rows, fields, size, dtype=dtype)) < 20 * PRECISE[dtype]
