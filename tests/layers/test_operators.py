"""The operators of compiled graphs: what torch asks of an operator, and that graphs call them."""

import pytest
import torch

from loractr.adapters import LowRankLinear
from loractr.batch import Groups, Route
from loractr.layers.linear import Linear
from loractr.layers.operators import grouped_linear

IDS = torch.tensor([2, -1, 0, 2, 2, -1, 0])  # nobody goes to expert 1


def numbers(*shape, dtype=torch.double):
    random = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=random, dtype=dtype, requires_grad=True)


@pytest.fixture(params=["torch", "native"])
def _kind(request):
    if request.param == "native":
        request.getfixturevalue("kernels")


@pytest.mark.slow
@pytest.mark.usefixtures("_kind")
@pytest.mark.parametrize("grouped", [False, True])
def test_torch_finds_nothing_wrong_with_the_operator(grouped):
    ids = IDS.sort().values if grouped else IDS
    groups = Groups.of(ids, 3, grouped=grouped)
    rows = (groups.expert, groups.offsets, groups.order)
    found = torch.library.opcheck(grouped_linear, (numbers(7, 4), numbers(3, 5, 4), *rows))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.slow
@pytest.mark.usefixtures("_kind")
@pytest.mark.parametrize("offset", [False, True])
def test_a_compiled_layer_and_its_gradients_are_the_eager_ones(offset):
    torch.compiler.reset()
    layer = LowRankLinear(Linear(4, 5), experts=3, rank=2, offset=offset, row_scale=True).double()
    layer.up.data.normal_(generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (7, 4, 1):
        x, route = numbers(rows, 4), Route.hard(IDS[:rows], 3)
        found, expected = compiled(x, route), layer(x, route)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        wanted = [x, *layer.parameters()]
        pairs = [torch.autograd.grad(y.square().sum(), wanted) for y in (found, expected)]
        for ours, eager in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, eager, atol=1e-12, rtol=0)


@pytest.mark.parametrize("experts", [3, 300])
def test_a_compiled_graph_calls_the_operator_however_many_experts_there_are(experts):
    torch.compiler.reset()
    graphs = []

    def keep(graph, _):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    layer = LowRankLinear(Linear(4, 5), experts=experts, rank=2)
    torch.compile(layer, fullgraph=True, backend=keep)(
        numbers(7, 4, dtype=torch.float32), Route.hard(IDS, experts)
    )
    (calls,) = graphs
    assert sum("grouped_linear" in str(call) for call in calls) == 2  # down and up
