import torch

from loractr.layers.fm import fm


def test_it_is_the_sum_of_all_inner_products_worked_by_hand():
    a, b, c = [1.0, 2.0], [3.0, -1.0], [0.5, 4.0]
    # ⟨a,b⟩ = 1, ⟨a,c⟩ = 8.5, ⟨b,c⟩ = -2.5
    assert fm(torch.tensor([[a, b, c], [a, b, [0.0, 0.0]]])).tolist() == [7.0, 1.0]


def test_it_equals_the_loop_over_pairs():
    e = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    pairs = [e[:, i] * e[:, j] for i in range(5) for j in range(i + 1, 5)]
    torch.testing.assert_close(fm(e), sum(pairs).sum(1), rtol=1e-12, atol=1e-12)


def test_its_written_out_gradient_is_that_of_finite_differences():
    e = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    assert torch.autograd.gradcheck(fm, (e.requires_grad_(),))


def test_with_fewer_than_two_fields_it_is_zero():
    e = torch.randn(4, 1, 3).double()
    torch.testing.assert_close(fm(e), torch.zeros(4).double(), rtol=0, atol=1e-12)
    assert fm(torch.empty(4, 0, 3)).tolist() == [0.0] * 4


def test_no_rows_give_no_results():
    assert fm(torch.empty(0, 5, 3)).shape == (0,)


def test_it_compiles_to_one_graph_with_the_same_values():
    e = torch.randn(4, 5, 3)
    compiled = torch.compile(fm, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(e), fm(e))
