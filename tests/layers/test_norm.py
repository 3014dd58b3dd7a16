import numpy as np
import pytest
import torch

from loractr.batch import Route
from loractr.layers.norm import BatchNorm


@pytest.fixture
def norm() -> BatchNorm:
    """A norm over 3 features that has moved away from its start."""
    layer = BatchNorm(3, momentum=0.2, eps=1e-3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean):
            tensor.normal_(generator=generator)
        layer.running_var.uniform_(0.5, 2.0, generator=generator)
    return layer


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1)).double() * 4 + 2


def test_training_normalises_by_the_batch_as_the_formula_says(norm):
    x = rows(7)
    a = x.numpy()
    expected = (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-3)
    expected = norm.weight.detach().numpy() * expected + norm.bias.detach().numpy()
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-12)


def test_training_moves_the_running_statistics_by_momentum_with_the_unbiased_variance(norm):
    x = rows(7)
    mean, var = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    norm(x)
    a = x.numpy()
    np.testing.assert_allclose(norm.running_mean, 0.8 * mean + 0.2 * a.mean(0), rtol=1e-12)
    np.testing.assert_allclose(norm.running_var, 0.8 * var + 0.2 * a.var(0, ddof=1), rtol=1e-12)


def by_running_statistics(norm: BatchNorm, x: torch.Tensor) -> np.ndarray:
    mean, var = norm.running_mean.numpy(), norm.running_var.numpy()
    scaled = (x.numpy() - mean) / np.sqrt(var + 1e-3)
    return norm.weight.detach().numpy() * scaled + norm.bias.detach().numpy()


def frozen(norm: BatchNorm) -> BatchNorm:
    return norm.train().requires_grad_(False)


@pytest.mark.parametrize(
    ("mode", "count"), [(BatchNorm.eval, 7), (BatchNorm.eval, 1), (BatchNorm.train, 1), (frozen, 7)]
)
def test_evaluation_small_batches_and_frozen_norms_use_running_statistics_untouched(
    norm, mode, count
):
    mode(norm)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = rows(count)
    np.testing.assert_allclose(norm(x).detach().numpy(), by_running_statistics(norm, x), rtol=1e-12)
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())


def test_a_norm_with_one_trained_parameter_still_trains(norm):
    norm.weight.requires_grad_(False)
    before = norm.running_mean.clone()
    norm(rows(5))
    assert not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_gives_an_empty_result_and_leaves_the_buffers(norm, training):
    before = norm.running_mean.clone()
    assert norm.train(training)(rows(0)).shape == (0, 3)
    assert torch.equal(norm.running_mean, before)


def test_a_fresh_norm_in_evaluation_only_divides_by_almost_one():
    x = torch.randn(5, 4)
    torch.testing.assert_close(BatchNorm(4, eps=1e-12).eval()(x, Route.none()), x)


def test_it_has_two_vectors_of_parameters():
    assert sum(p.numel() for p in BatchNorm(5).parameters()) == 10


def test_gradients_are_those_of_finite_differences(norm):
    x = rows(5).requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,))
