"""Products and towers per domain, against loops over rows in numpy."""

import copy

import numpy as np
import pytest
import torch
from torch.export import Dim, ShapesCollection

from loractr.batch import Groups, Route
from loractr.layers.domain import DomainLinear, DomainMLP

DOMAINS = 3
IDS = torch.tensor([2, -1, 0, 2, 0, -1, 2, 0])  # domain 1 has no rows; -1: of no domain
N = len(IDS)


def random_of(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.double)


def moved(layer, seed=1):
    """The layer in float64, away from its start."""
    generator = torch.Generator().manual_seed(seed)
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
        for buffer in layer.buffers():
            buffer.uniform_(0.5, 2.0, generator=generator)
    return layer


@pytest.fixture
def linear() -> DomainLinear:
    return moved(DomainLinear(4, 5, DOMAINS))


def tower_of(*sizes, **options):
    return moved(DomainMLP(4, sizes or (6, 5), DOMAINS, **options))


def mixed() -> Route:
    return Route.hard(IDS, DOMAINS)


def of(stack, domain):
    """A domain's own part of a stacked tensor; the mean of all for -1."""
    array = stack.detach().numpy()
    return array.mean(0) if domain < 0 else array[domain]


def affine(layer, domain, x):
    weight, bias = of(layer.weight, domain), of(layer.bias, domain)
    return np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in weight]) + bias


def by_hand(tower, domain, x):
    """One row through one domain's tower in evaluation."""
    for block in tower.children():
        x = affine(block.linear, domain, x)
        if block.norm is not None:
            mean, var = of(block.norm.running_mean, domain), of(block.norm.running_var, domain)
            scale, shift = of(block.norm.weight, domain), of(block.norm.bias, domain)
            x = scale * (x - mean) / np.sqrt(var + 1e-5) + shift
        x = np.maximum(x, 0)
    return x


def test_each_row_goes_through_its_own_domains_map_and_the_others_through_the_mean(linear):
    x = random_of(N, 4)
    expected = [affine(linear, d, x[n].numpy()) for n, d in enumerate(IDS.tolist())]
    np.testing.assert_allclose(linear(x, mixed()).detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("route", [None, Route.none()])
def test_without_a_division_all_rows_are_the_average_domains(linear, route):
    x = random_of(N, 4)
    expected = [affine(linear, -1, x[n].numpy()) for n in range(N)]
    np.testing.assert_allclose(linear(x, route).detach(), expected, rtol=1e-12)


def test_the_division_that_acts_is_the_one_that_counts(linear):
    groups = mixed().divisions[0]
    x = random_of(N, 4)
    assert torch.equal(linear(x, Route(divisions=(None, groups))), linear(x, mixed()))


def test_rows_may_stand_in_any_order(linear):
    x, by_domain = random_of(N, 4), torch.argsort(IDS, stable=True)
    in_order = Route(divisions=(Groups.of(IDS[by_domain], DOMAINS, grouped=True),))
    expected = linear(x, mixed())[by_domain]
    torch.testing.assert_close(linear(x[by_domain], in_order), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("own_inputs", [False, True])
def test_every_map_on_every_row_with_the_average_first(linear, own_inputs):
    x = random_of(N, DOMAINS + 1, 4) if own_inputs else random_of(N, 4)
    found = linear.every(x).detach()
    for n in range(N):
        for place, domain in enumerate([-1, 0, 1, 2]):
            row = x[n, place] if own_inputs else x[n]
            np.testing.assert_allclose(
                found[n, place], affine(linear, domain, row.numpy()), rtol=1e-12
            )


def test_without_bias_there_is_none():
    layer = moved(DomainLinear(4, 5, DOMAINS, bias=False))
    assert layer.bias is None
    zero = torch.zeros(N, 4).double()
    assert not layer(zero, mixed()).any()
    assert not layer.every(zero).any()


def test_a_fresh_layer_is_glorot_for_each_domain_by_itself_with_zero_bias():
    """Variance 2 / (in + out), whatever the number of domains, and no two domains alike."""
    layer = DomainLinear(300, 100, 7, generator=torch.Generator().manual_seed(0))
    assert layer.weight.shape == (7, 100, 300)
    assert layer.weight.std((1, 2)).tolist() == pytest.approx([(2 / 400) ** 0.5] * 7, rel=0.02)
    assert layer.weight[:, 0, 0].unique().numel() == 7
    assert not layer.bias.any()


def test_the_generator_decides_the_weights_and_the_global_one_is_left_alone():
    state = torch.get_rng_state()
    one, again = (DomainMLP(4, (3, 2), 2, generator=torch.Generator().manual_seed(5)) for _ in "ab")
    pairs = zip(one.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("route", [mixed(), Route.hard(IDS.clamp(min=0), DOMAINS), None])
def test_gradients_are_those_of_finite_differences(linear, route):
    x = random_of(N, 4).requires_grad_()

    def y(x, weight, bias):
        return torch.func.functional_call(linear, {"weight": weight, "bias": bias}, (x, route))

    assert torch.autograd.gradcheck(y, (x, linear.weight, linear.bias))


def test_a_domain_without_rows_has_zero_gradients():
    tower = tower_of(batch_norm=True)
    route = Route.hard(IDS.clamp(min=0), DOMAINS)
    tower(random_of(N, 4), route).square().sum().backward()
    for name, parameter in tower.named_parameters():
        assert not parameter.grad[1].any(), name
        assert parameter.grad[[0, 2]].flatten(1).any(1).all(), name


def test_rows_of_no_domain_teach_all_domains_alike(linear):
    linear(random_of(2, 4), None).square().sum().backward()
    for parameter in (linear.weight, linear.bias):
        assert parameter.grad.any()
        first, second, third = parameter.grad
        assert torch.equal(first, second)
        assert torch.equal(first, third)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_tower_is_one_tower_per_domain(batch_norm):
    tower, x = tower_of(batch_norm=batch_norm).eval(), random_of(N, 4)
    expected = [by_hand(tower, d, x[n].numpy()) for n, d in enumerate(IDS.tolist())]
    np.testing.assert_allclose(tower(x, mixed()).detach(), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_tower_on_every_row(batch_norm):
    tower, x = tower_of(batch_norm=batch_norm).eval(), random_of(N, 4)
    found = tower.every(x).detach()
    for n in range(N):
        for place, domain in enumerate([-1, 0, 1, 2]):
            expected = by_hand(tower, domain, x[n].numpy())
            np.testing.assert_allclose(found[n, place], expected, rtol=1e-11, atol=1e-13)


def normalised(h, norm, domain):
    """Rows of one domain by their own mean and biased variance."""
    scale, shift = of(norm.weight, domain), of(norm.bias, domain)
    return scale * (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) + shift


def test_training_normalises_each_domain_by_its_own_rows_and_the_others_by_running_means():
    tower, x = tower_of(6, batch_norm=True), random_of(N, 4)
    (block,) = tower.children()
    expected = np.zeros((N, 6))
    for domain in (-1, 0, 2):
        rows = np.flatnonzero(IDS.numpy() == domain)
        h = np.stack([affine(block.linear, domain, x[n].numpy()) for n in rows])
        if domain < 0:
            mean, var = of(block.norm.running_mean, -1), of(block.norm.running_var, -1)
            scaled = (h - mean) / np.sqrt(var + 1e-5)
            expected[rows] = of(block.norm.weight, -1) * scaled + of(block.norm.bias, -1)
        else:
            expected[rows] = normalised(h, block.norm, domain)
    found = tower(x, mixed()).detach()
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-10, atol=1e-12)


def test_training_moves_the_running_statistics_of_domains_with_rows_only():
    tower, x = tower_of(6, batch_norm=True), random_of(N, 4)
    (block,) = tower.children()
    before = block.norm.running_mean.clone()
    tower(x, mixed())
    h = np.stack([affine(block.linear, 2, row.numpy()) for row in x[IDS == 2]])
    expected = 0.9 * before[2].numpy() + 0.1 * h.mean(0)
    np.testing.assert_allclose(block.norm.running_mean[2], expected, rtol=1e-12)
    assert torch.equal(block.norm.running_mean[1], before[1])


def test_training_every_tower_normalises_by_all_rows():
    tower, x = tower_of(6, batch_norm=True), random_of(N, 4)
    (block,) = tower.children()
    average = np.stack([by_hand(tower, -1, row.numpy()) for row in x])
    before = block.norm.running_var.clone()
    found = tower.every(x).detach()
    np.testing.assert_allclose(found[:, 0], average, rtol=1e-10, atol=1e-12)
    for domain in range(DOMAINS):
        h = np.stack([affine(block.linear, domain, row.numpy()) for row in x])
        expected = np.maximum(normalised(h, block.norm, domain), 0)
        np.testing.assert_allclose(found[:, domain + 1], expected, rtol=1e-10, atol=1e-12)
        moved_to = 0.9 * before[domain].numpy() + 0.1 * h.var(0, ddof=1)
        np.testing.assert_allclose(block.norm.running_var[domain], moved_to, rtol=1e-12)


@pytest.mark.parametrize("mode", ["frozen", "one row", "no row"])
def test_every_leaves_the_statistics_alone_where_a_norm_does_not_train(mode):
    tower = tower_of(6, batch_norm=True)
    if mode == "frozen":
        tower.requires_grad_(False)
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    x = random_of({"frozen": N, "one row": 1, "no row": 0}[mode], 4)
    found = tower.every(x).detach()
    assert found.shape == (len(x), DOMAINS + 1, 6)
    for n, row in enumerate(x):
        np.testing.assert_allclose(found[n, 2], by_hand(tower, 1, row.numpy()), atol=1e-12)
    assert all(torch.equal(buffer, before[name]) for name, buffer in tower.named_buffers())


def test_dropout_stands_after_the_activation_or_on_the_shared_path_before_the_norm():
    """A norm with a large bias makes every unit active: a dropped one is 0 only where the dropout
    comes last."""
    zeros = {}
    for position in ("after_activation", "shared_path"):
        tower = tower_of(50, dropout=0.5, batch_norm=True, dropout_position=position)
        (block,) = tower.children()
        with torch.no_grad():
            block.norm.weight.fill_(1.0)
            block.norm.bias.fill_(100.0)
        plain = tower.eval()(random_of(N, 4), mixed())
        assert plain.all()
        random = tower.train()(random_of(N, 4), mixed())
        assert not torch.equal(random, plain)
        zeros[position] = float((random == 0).double().mean())
    assert zeros["after_activation"] == pytest.approx(0.5, abs=0.15)
    assert zeros["shared_path"] == 0


def test_a_tower_without_hidden_layers_is_its_input():
    tower, x = DomainMLP(4, (), DOMAINS), random_of(N, 4)
    assert tower.out_features == 4
    assert tower(x, mixed()) is x


@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch_has_an_empty_result_and_zero_gradients(training):
    tower = tower_of(batch_norm=True).train(training)
    y = tower(random_of(0, 4), Route.hard(IDS[:0], DOMAINS))
    y.sum().backward()
    assert y.shape == (0, 5)
    assert not any(parameter.grad.any() for parameter in tower.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("every", [False, True])
def test_it_compiles_without_a_graph_break(training, every):
    torch.compiler.reset()
    tower = tower_of(batch_norm=True).train(training)
    other = copy.deepcopy(tower)

    def run(tower, x, route):
        return tower.every(x) if every else tower(x, route)

    compiled = torch.compile(run, fullgraph=True, backend="eager", dynamic=True)
    for seed, ids in enumerate([IDS, IDS[:5]]):
        x, route = random_of(len(ids), 4, seed=seed), Route.hard(ids, DOMAINS)
        found, expected = compiled(tower, x, route), run(other, x, route)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    for name, buffer in tower.named_buffers():
        torch.testing.assert_close(buffer, other.get_buffer(name), atol=1e-12, rtol=0)


def test_it_exports_strictly_for_batches_of_any_size():
    tower = tower_of(batch_norm=True).eval()
    x, route = random_of(N, 4), mixed()
    shapes = ShapesCollection()
    shapes[x] = {0: Dim.AUTO}
    shapes[route.divisions[0].expert] = {0: Dim.AUTO}
    shapes[route.divisions[0].order] = {0: Dim.AUTO}
    program = torch.export.export(tower, (x, route), dynamic_shapes=shapes, strict=True).module()
    for count in (3, 7):
        x, route = random_of(count, 4, seed=3), Route.hard(IDS[:count], DOMAINS)
        torch.testing.assert_close(program(x, route), tower(x, route), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((0, 5, 3), "widths must be at least 1, not 0 → 5"),
        ((4, 0, 3), "widths must be at least 1, not 4 → 0"),
        ((4, 5, 0), "at least 1 domain, not 0"),
    ],
)
def test_sizes_below_one_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        DomainLinear(*sizes)


def test_a_route_to_more_domains_than_there_are_is_refused(linear):
    with pytest.raises(IndexError):
        linear(random_of(2, 4), Route.hard(torch.tensor([0, 3]), 4))
