"""Compiled reading of tables, and the gradients of whole tables, against sums written out."""

from itertools import product

import pytest
import torch

from loractr import native
from loractr.layers import lookup
from loractr.layers.lookup import Bags, look_up, look_up_both
from native.agreement import gap

pytestmark = pytest.mark.usefixtures("kernels")

ROWS = {
    "none": torch.empty(0, 3, dtype=torch.int64),
    "no field": torch.empty(4, 0, dtype=torch.int64),
    "one": torch.tensor([[7]]),
    "all the same": torch.full((9, 2), 3),
    "repeated": torch.tensor([[5, 0], [5, 2], [8, 0], [1, 5]]),
    "many": (torch.arange(14_000).square() % 9).view(2000, 7),
}
SIZE = 9


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def side_by_side(rows):
    def applied(weight, linear):
        vectors, terms = look_up_both(weight, linear, rows, None)
        return torch.cat([vectors.flatten(1), terms[:, None]], 1)

    return applied


@pytest.mark.parametrize("width", [1, 8, 16, 40])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_both_kinds_of_kernels_read_alike(rows, width, monkeypatch):
    monkeypatch.setattr(lookup, "WORTH_A_CALL", 0)
    weight, linear = normal(SIZE, width), normal(SIZE, 1, seed=1)
    assert gap(side_by_side(rows), weight, linear) < 1e-12
    assert gap(side_by_side(rows), weight.float(), linear.float()) < 1e-4
    assert gap(lambda w: look_up(w, rows, None), weight) < 1e-12


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gradients_are_sums_over_the_places_where_a_row_is_read(rows):
    weight, linear = (normal(SIZE, width).requires_grad_() for width in (5, 1))
    vectors, terms = look_up_both(weight, linear, rows, None)
    assert torch.equal(vectors, weight.detach()[rows])
    torch.testing.assert_close(terms, linear.detach()[rows].sum((1, 2)))
    factor, other = normal(*vectors.shape, seed=2), normal(len(rows), seed=3)
    ((vectors * factor).sum() + (terms * other).sum()).backward()
    expected, lines = torch.zeros(SIZE, 5).double(), torch.zeros(SIZE, 1).double()
    for n, ids in enumerate(rows.tolist()):
        for f, row in enumerate(ids):
            expected[row] += factor[n, f]
            lines[row] += other[n]
    torch.testing.assert_close(weight.grad, expected)
    torch.testing.assert_close(linear.grad, lines)


@pytest.mark.parametrize("kind", ["native", "torch"])
@pytest.mark.parametrize("rows", [ROWS["repeated"], ROWS["all the same"]], ids=["repeated", "same"])
def test_gradients_are_numerically_right_whatever_is_frozen(rows, kind, monkeypatch):
    """gradcheck of both tables side by side, and of one by itself."""
    monkeypatch.setattr(lookup, "WORTH_A_CALL", 0)
    tables = [normal(SIZE, 5), normal(SIZE, 1, seed=1)]
    with native.use(kind):
        for trains in product([False, True], repeat=2):
            if any(trains):
                leaves = [t.clone().requires_grad_(g) for t, g in zip(tables, trains, strict=True)]
                assert torch.autograd.gradcheck(
                    lambda *both: tuple(
                        y for y in look_up_both(*both, rows, None) if y.requires_grad
                    ),
                    leaves,
                )
        alone = tables[0].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda table: look_up(table, rows, None), alone)


@pytest.mark.parametrize("trains", ["weight", "linear"])
def test_a_frozen_table_gets_no_gradient(trains):
    tables = {"weight": normal(SIZE, 5), "linear": normal(SIZE, 1)}
    tables[trains].requires_grad_()
    vectors, terms = look_up_both(tables["weight"], tables["linear"], ROWS["repeated"], None)
    assert vectors.requires_grad == (trains == "weight")  # nothing is computed for a frozen one
    assert terms.requires_grad == (trains == "linear")
    (vectors.sum() + terms.sum()).backward()
    reads = torch.bincount(ROWS["repeated"].flatten(), minlength=SIZE).double()[:, None]
    assert torch.equal(tables.pop(trains).grad, reads.expand(-1, 5 if trains == "weight" else 1))
    assert next(iter(tables.values())).grad is None


@pytest.mark.parametrize("used", [0, 1])
def test_a_table_of_which_nothing_is_made_has_no_gradient(used):
    tables = [normal(SIZE, width).requires_grad_() for width in (5, 1)]
    look_up_both(*tables, ROWS["repeated"], None)[used].sum().backward()
    reads = torch.bincount(ROWS["repeated"].flatten(), minlength=SIZE).double()[:, None]
    assert torch.equal(tables[used].grad, reads.expand_as(tables[used]))
    assert tables[1 - used].grad is None


def test_the_linear_terms_of_sequences_are_those_of_two_lookups():
    bags = Bags(torch.tensor([4, 1, 1]), torch.tensor([0, 2, 2, 3, 3]), 1)
    weight, linear, rows = normal(SIZE, 5), normal(SIZE, 1), ROWS["repeated"]
    vectors, terms = look_up_both(weight, linear, rows, bags)
    means = [[4, 1], [], [1], []]
    for n, ids in enumerate(means):
        share = sum((linear[i] for i in ids), torch.zeros(1).double()) / max(len(ids), 1)
        torch.testing.assert_close(terms[n], (linear[rows[n]].sum() + share).squeeze())
        torch.testing.assert_close(vectors[n, :2], weight[rows[n]])


@pytest.mark.parametrize("count", [2, 3, 7])
def test_gradients_do_not_depend_on_the_number_of_threads(count):
    held, found = torch.get_num_threads(), []
    try:
        for threads in (1, count):
            torch.set_num_threads(threads)
            weight, linear = normal(SIZE, 40).float(), normal(SIZE, 1).float()
            y = side_by_side(ROWS["many"])(weight.requires_grad_(), linear.requires_grad_())
            (y * normal(*y.shape, seed=4).float()).sum().backward()
            found.append((y.detach(), weight.grad, linear.grad))
    finally:
        torch.set_num_threads(held)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["native", "torch"])
@pytest.mark.parametrize("wrong", [SIZE, -1, 2**40])
def test_an_id_that_is_no_row_is_an_error(wrong, kind):
    rows = ROWS["many"].clone()
    rows[1234, 5] = wrong
    table, linear = torch.ones(SIZE, 16), torch.ones(SIZE, 1)
    with native.use(kind):
        with pytest.raises(IndexError, match="out of range"):
            look_up(table, rows, None)
        with pytest.raises(IndexError, match="out of range"):
            look_up_both(table, linear, rows, None)
