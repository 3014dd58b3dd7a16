"""wide_deep, nfm, pnn, fibinet against their formulas: NumPy loops over rows, pairs, elements."""

import itertools

import numpy as np
import pytest
import torch

from loractr.backbones import BACKBONES, Backbone, ModelConfig
from loractr.batch import Route
from loractr.errors import ConfigError
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.linear import Linear

SIZE = 3
ALL = Widths(size=SIZE, fields=4, others=(2, 5), numbers=2)
FLAT = 4 * SIZE + 2 + 5 + 2
ROWS = 6
VARIANTS = [
    ("wide_deep", {}),
    ("nfm", {}),
    ("nfm", {"numbers_in_interactions": False}),
    ("pnn", {}),
    ("pnn", {"products": "outer"}),
    ("pnn", {"products": "both", "numbers_in_interactions": False}),
    ("fibinet", {}),
    ("fibinet", {"bilinear": "each", "senet_reduction": 1}),
    ("fibinet", {"bilinear": "all", "numbers_in_interactions": False}),
]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]
INPUTS = {
    "everything": ALL,
    "one width": Widths(size=SIZE, fields=4, others=(), numbers=0),
    "no field of the common width": Widths(size=SIZE, fields=0, others=(2, 5), numbers=1),
    "two fields": Widths(size=SIZE, fields=2, others=(), numbers=0),
}
variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)


def features(widths: Widths = ALL, rows: int = ROWS, seed: int = 1) -> Embedded:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).double()

    return Embedded(
        normal(rows, widths.fields, widths.size),
        tuple(normal(rows, width) for width in widths.others),
        normal(rows, widths.numbers),
        normal(rows),
    )


def backbone(name: str, widths: Widths = ALL, **options: object) -> Backbone:
    """One with no zero biases, so that each of them counts."""
    config = ModelConfig(
        backbone=name, embedding_size=SIZE, hidden_sizes=(7, 4), embedding_std=1.0, **options
    )
    made = BACKBONES[name](config, widths, torch.Generator().manual_seed(0)).double()
    for key, parameter in made.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(key)))
    return made


def product(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in weight])


class Formula:
    """What a backbone computes, row by row, from its weights alone."""

    def __init__(self, made: Backbone, name: str, options: dict) -> None:
        self.weights = {key: p.detach().numpy() for key, p in made.named_parameters()}
        self.name, self.options = name, options

    def __call__(self, x: Embedded, n: int) -> np.ndarray:
        """The vector of row n."""
        numbers = x.numbers[n].numpy()
        parts = [*x.vectors[n].numpy(), *(other[n].numpy() for other in x.others), numbers]
        flat = np.concatenate(parts)
        e = list(x.vectors[n].numpy())
        for place, other in enumerate(x.others if self.name != "wide_deep" else ()):
            e.append(product(self.weights[f"pairwise.project.{place}.weight"], other[n].numpy()))
        if self.options.get("numbers_in_interactions", True) and self.name != "wide_deep":
            learned = self.weights.get("pairwise.numbers", [])
            e += [value * vector for value, vector in zip(numbers, learned, strict=True)]
        return self.tower(getattr(self, self.name)(flat, e))

    def tower(self, h: np.ndarray) -> np.ndarray:
        for layer in (0, 1):
            weight = self.weights[f"tower.{layer}.linear.weight"]
            h = np.maximum(product(weight, h) + self.weights[f"tower.{layer}.linear.bias"], 0.0)
        return h

    def wide_deep(self, flat: np.ndarray, e: list[np.ndarray]) -> np.ndarray:
        return flat

    def nfm(self, flat: np.ndarray, e: list[np.ndarray]) -> np.ndarray:
        pooled = np.zeros(SIZE)
        for a, b in itertools.combinations(e, 2):
            for k in range(SIZE):
                pooled[k] += a[k] * b[k]
        return pooled

    def pnn(self, flat: np.ndarray, e: list[np.ndarray]) -> np.ndarray:
        kind = self.options.get("products", "inner")
        inner, outer = [], []
        for i, j in itertools.combinations(range(len(e)), 2):
            inner.append(sum(e[i][k] * e[j][k] for k in range(SIZE)))
            if kind != "inner":
                w = self.weights[f"products.{i}.weight"][(j - i - 1) * SIZE : (j - i) * SIZE]
                cells = itertools.product(range(SIZE), range(SIZE))
                outer.append(sum(e[j][k] * w[k, m] * e[i][m] for k, m in cells))
        return np.array([*flat, *(inner * (kind != "outer")), *outer])

    def fibinet(self, flat: np.ndarray, e: list[np.ndarray]) -> np.ndarray:
        z = [sum(vector) / SIZE for vector in e]
        hidden = np.maximum(product(self.weights["senet.squeeze.weight"], z), 0.0)
        a = np.maximum(product(self.weights["senet.excite.weight"], hidden), 0.0)
        weighted = [scale * vector for scale, vector in zip(a, e, strict=True)]
        return np.concatenate([self.pairs("bilinear", e), self.pairs("senet_bilinear", weighted)])

    def pairs(self, layer: str, e: list[np.ndarray]) -> np.ndarray:
        kind, found = self.options.get("bilinear", "interaction"), []
        for i, j in itertools.combinations(range(len(e)), 2):
            weight = self.weights[f"{layer}.{0 if kind == 'all' else i}.weight"]
            first = (j - i - 1) * SIZE if kind == "interaction" else 0
            left = product(weight[first : first + SIZE], e[i])
            found += [left[k] * e[j][k] for k in range(SIZE)]
        return np.array(found)


@variants
@pytest.mark.parametrize("widths", INPUTS.values(), ids=INPUTS)
def test_its_whole_logit_is_the_formula_in_loops(name, options, widths):
    made, x = backbone(name, widths, **options), features(widths)
    out = made(x, Route.none())
    formula = Formula(made, name, options)
    head = np.random.default_rng(3).normal(size=made.out_features)
    logit = out.vector.detach().numpy() @ head
    if out.logit is not None:
        logit += out.logit.detach().numpy()
    assert out.vector.shape == (ROWS, 4)
    for n in range(ROWS):
        vector = formula(x, n)
        np.testing.assert_allclose(out.vector[n].detach(), vector, rtol=1e-10, atol=1e-12)
        linear = 0.0 if name == "pnn" else x.first_order[n].item()
        expected = sum(h * v for h, v in zip(head, vector, strict=True)) + linear
        assert logit[n] == pytest.approx(expected, rel=1e-10, abs=1e-12)


@variants
def test_something_of_every_tower_is_alive_in_that_comparison(name, options):
    out = backbone(name, **options)(features(), Route.none())
    assert (out.vector > 0).any(0).sum() >= 2


FIELDS = 4 + 2 + 2
PAIRS = FIELDS * (FIELDS - 1) // 2
LEFTS = [str(i) for i in range(FIELDS - 1)]
PROJECTS = ["pairwise.project.0", "pairwise.project.1"]
TOWER = ["tower.0.linear", "tower.1.linear"]
SENET = ["senet.squeeze", "senet.excite"]


@pytest.mark.parametrize(
    ("name", "options", "own"),
    [
        ("wide_deep", {}, []),
        ("nfm", {}, PROJECTS),
        ("pnn", {}, PROJECTS),
        ("pnn", {"products": "outer"}, [*PROJECTS, *(f"products.{i}" for i in LEFTS)]),
        ("pnn", {"products": "both"}, [*PROJECTS, *(f"products.{i}" for i in LEFTS)]),
        (
            "fibinet",
            {"bilinear": "all"},
            [*PROJECTS, *SENET, "bilinear.0", "senet_bilinear.0"],
        ),
        *(
            (
                "fibinet",
                {"bilinear": kind},
                [
                    *PROJECTS,
                    *SENET,
                    *(f"bilinear.{i}" for i in LEFTS),
                    *(f"senet_bilinear.{i}" for i in LEFTS),
                ],
            )
            for kind in ("each", "interaction")
        ),
    ],
)
def test_every_product_is_an_adaptable_linear_layer_with_a_simple_name(name, options, own):
    made = backbone(name, **options)
    linears = [key for key, module in made.named_modules() if type(module) is Linear]
    assert sorted(linears) == sorted([*TOWER, *own])
    products = {key.rpartition(".")[0] for key, p in made.named_parameters() if p.dim() == 2}
    assert products - {"pairwise"} == set(linears)  # pairwise.numbers scales, it is no product


def tower_size(width: int) -> int:
    return width * 7 + 7 + 7 * 4 + 4


PAIRWISE_SIZE = 2 * SIZE + 5 * SIZE + 2 * SIZE
SENET_SIZE = 2 * FIELDS * (FIELDS // 3)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("wide_deep", {}, tower_size(FLAT)),
        ("nfm", {}, tower_size(SIZE) + PAIRWISE_SIZE),
        ("pnn", {}, tower_size(FLAT + PAIRS) + PAIRWISE_SIZE),
        ("pnn", {"products": "outer"}, tower_size(FLAT + PAIRS) + PAIRWISE_SIZE + PAIRS * 9),
        ("pnn", {"products": "both"}, tower_size(FLAT + 2 * PAIRS) + PAIRWISE_SIZE + PAIRS * 9),
        *(
            (
                "fibinet",
                {"bilinear": kind},
                tower_size(2 * PAIRS * SIZE) + PAIRWISE_SIZE + SENET_SIZE + 2 * matrices * 9,
            )
            for kind, matrices in [("all", 1), ("each", FIELDS - 1), ("interaction", PAIRS)]
        ),
    ],
)
def test_it_has_as_many_parameters_as_its_formula(name, options, size):
    made = backbone(name, **options)
    assert sum(p.numel() for p in made.parameters()) == size


@pytest.mark.parametrize("name", ["nfm", "pnn", "fibinet"])
@pytest.mark.parametrize(
    ("widths", "numbers", "found"),
    [
        (Widths(size=SIZE, fields=1, others=(), numbers=0), True, 1),
        (Widths(size=SIZE, fields=0, others=(5,), numbers=0), True, 1),
        (Widths(size=SIZE, fields=0, others=(), numbers=1), True, 1),
        (Widths(size=SIZE, fields=0, others=(), numbers=9), False, 0),
        (Widths(size=SIZE, fields=1, others=(), numbers=9), False, 1),
    ],
)
def test_a_backbone_of_pairs_refuses_fewer_than_two_fields(name, widths, numbers, found):
    with pytest.raises(ConfigError, match=rf"'{name}' multiplies pairs .* has {found} ") as error:
        backbone(name, widths, numbers_in_interactions=numbers)
    assert "Fix: " in str(error.value)


@pytest.mark.parametrize(
    "widths",
    [
        Widths(size=SIZE, fields=1, others=(), numbers=0),
        Widths(size=SIZE, fields=0, others=(5,), numbers=0),
        Widths(size=SIZE, fields=0, others=(), numbers=1),
    ],
)
def test_wide_deep_is_content_with_a_single_field(widths):
    made, x = backbone("wide_deep", widths), features(widths)
    formula = Formula(made, "wide_deep", {})
    out = made(x, Route.none())
    np.testing.assert_allclose(out.vector[2].detach(), formula(x, 2), rtol=1e-10)


@variants
def test_no_rows_give_no_results(name, options):
    out = backbone(name, **options)(features(rows=0), Route.none())
    assert out.vector.shape == (0, 4)
    assert out.logit is None or out.logit.shape == (0,)


def chosen(x: Embedded, rows: torch.Tensor) -> Embedded:
    others = tuple(other[rows] for other in x.others)
    return Embedded(x.vectors[rows], others, x.numbers[rows], x.first_order[rows])


@variants
def test_a_row_does_not_depend_on_the_others(name, options):
    made, x = backbone(name, **options), features()
    whole = made(x, Route.none()).vector
    for rows in (torch.tensor([3, 1, 0, 5, 4, 2]), torch.tensor([2])):
        part = made(chosen(x, rows), Route.none()).vector
        torch.testing.assert_close(part, whole[rows], rtol=1e-12, atol=1e-12)


@variants
def test_every_parameter_is_trained_by_its_logit(name, options):
    made, x = backbone(name, **options), features(rows=50)
    if name == "fibinet":  # a field whose weights in `excite` are all negative never counts
        made.get_submodule("senet.excite").weight.data.abs_()
    made(x, Route.none()).vector.sum().backward()
    assert [key for key, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


@variants
def test_single_precision_gives_what_double_gives(name, options):
    made, x = backbone(name, **options), features()
    exact = made(x, Route.none()).vector
    single = Embedded(
        x.vectors.float(),
        tuple(other.float() for other in x.others),
        x.numbers.float(),
        x.first_order.float(),
    )
    found = made.float()(single, Route.none()).vector
    assert (found.dtype, exact.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


@variants
def test_batch_norm_and_dropout_come_with_the_tower(name, options):
    made = backbone(name, batch_norm=True, dropout=0.5, **options)
    assert {"tower.0.norm", "tower.1.norm"} <= {key for key, _ in made.named_modules()}
    x = features(rows=64)
    seeds = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seeds.append(made(x, Route.none()).vector)
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])


@pytest.mark.slow
@variants
def test_it_compiles_to_one_graph_with_the_same_values(name, options):
    torch.compiler.reset()
    made = backbone(name, **options).eval()
    compiled = torch.compile(made, fullgraph=True, backend="eager", dynamic=True)
    for rows in (6, 4):
        x = features(rows=rows)
        torch.testing.assert_close(
            compiled(x, Route.none()).vector, made(x, Route.none()).vector, rtol=1e-12, atol=1e-12
        )
