"""HAMUR: hand-worked numbers of its adapter, its start, its cost, and what it does to a network."""

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from loractr.backbones import BACKBONES, ModelConfig
from loractr.baselines.hamur import HAMUR, HyperAdapter, HyperNetwork, HyperTower
from loractr.batch import Route
from loractr.errors import AdapterError
from loractr.layers.domain import DomainBlock, DomainLinear
from loractr.layers.dropout import Dropout
from loractr.layers.embedding import Widths
from loractr.layers.linear import Linear
from loractr.layers.mlp import MLP, Block
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage

SCHEMA = Schema(
    fields=(Field(name="user", size=9),),
    divisions=(Division(name="tab", column="tab", domains=("a", "b", "c")),),
)
WIDTHS = Widths(size=3, fields=2, others=(), numbers=1)


class Net:
    """A backbone and its head, HAMUR attached."""

    def __init__(self, backbone="mlp", hidden_sizes=(6, 5), hamur=None, **options):
        config = ModelConfig(backbone=backbone, hidden_sizes=hidden_sizes, **options)
        random = torch.Generator().manual_seed(0)
        self.backbone = BACKBONES[backbone](config, WIDTHS, random)
        self.plain = self.backbone.tower
        self.head = Linear(self.backbone.out_features, 1, generator=random)
        self.attached = (hamur or HAMUR(name="hamur")).attach(self, SCHEMA, random)


def of(*values):
    return torch.tensor(values, dtype=torch.double)


def logit(p):
    return (p / (1 - p)).log()


def hand_adapter():
    """H = 2, width 1, k = 1, two domains; the norm's running mean 0 and variance 1, eps next to 0.

    Domain 0: W_down = (2, 0)ᵀ I 1, b_1 = 0; W_up = 1 I (4, 8), b_2 = (0, 1).
    Domain 1: W_down = (0, 1)ᵀ I 1, b_1 = 1; W_up = 1 I (0, 2), b_2 = (3, 0).
    """
    adapter = HyperAdapter(2, 1, 1, 2).double().eval()
    adapter.norm.eps = 0.0
    with torch.no_grad():
        adapter.down_u.weight.copy_(torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]))
        adapter.down_v.weight.fill_(1)
        adapter.down_v.bias.copy_(torch.tensor([[0.0], [1.0]]))
        adapter.up_u.weight.fill_(1)
        adapter.up_v.weight.copy_(torch.tensor([[[4.0], [8.0]], [[0.0], [2.0]]]))
        adapter.up_v.bias.copy_(torch.tensor([[0.0, 1.0], [3.0, 0.0]]))
    return adapter


def test_the_adapter_worked_by_hand():
    adapter = hand_adapter()
    quarter = logit(of(0.25)).item()
    h = torch.stack([of(quarter / 6, 9), of(0, 5), of(5, -1)])
    core = of(3, 1, 2)[:, None, None]
    # row 0: sigmoid(2 · 3 · h_0) = 1/4, times I = 3 and (4, 8), + (0, 1): (3, 7)
    # row 1, no I to speak of: sigmoid(0) = 1/2, times I = 1 and (4, 8), + (0, 1): (2, 5)
    # row 2, domain 1: sigmoid(-1 · 2 + 1) = s, times I = 2 and (0, 2), + (3, 0): (3, 4 s)
    s = of(-1).sigmoid().item()
    expected = h + torch.stack([of(3, 7), of(2, 5), of(3, 4 * s)])
    torch.testing.assert_close(adapter(h, core, Route.hard(of(0, 0, 1), 2)), expected)


def test_a_row_of_no_domain_goes_through_the_mean_of_weights_and_statistics():
    adapter = hand_adapter()
    with torch.no_grad():
        adapter.norm.weight.copy_(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
        adapter.norm.running_mean.copy_(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
        adapter.norm.running_var.copy_(torch.tensor([[1.0, 1.0], [7.0, 17.0]]))
    # W_down = (1, ½)ᵀ I, b_1 = ½; W_up = I (2, 5), b_2 = (1.5, ½); norm 2 (z - (1, 2)) / (2, 3)
    h = of(-1, 1)[None]  # (-1 + ½) · 1 + ½ = 0: half of (2, 5), + b_2: (2.5, 3)
    found = adapter(h, of(1)[:, None, None], Route.hard(of(-1), 2))
    torch.testing.assert_close(found, h + of(1.5, 2 / 3)[None])
    torch.testing.assert_close(adapter(h, of(1)[:, None, None], Route.none()), found)


def test_each_domain_is_normalised_by_its_own_statistics():
    """In training by its rows' own, in evaluation by its running ones: never by the batch's."""
    generator = torch.Generator().manual_seed(0)
    adapter = HyperAdapter(4, 3, 2, 2, generator=generator).double()
    h = torch.randn(20, 4, generator=generator).double()
    core = torch.randn(20, 2, 2, generator=generator).double()
    domain = torch.arange(20) % 2
    update = adapter(h, core, Route.hard(domain, 2)) - h
    for t in (0, 1):
        torch.testing.assert_close(update[domain == t].mean(0), torch.zeros(4).double())
    adapter.eval()
    both = adapter(h, core, Route.hard(domain, 2))
    for t in (0, 1):
        one = adapter(h[domain == t], core[domain == t], Route.hard(domain[domain == t], 2))
        torch.testing.assert_close(both[domain == t], one)


def test_a_fresh_adapters_products_are_not_of_rank_one():
    """As they would be from all-ones matrices."""
    adapter = HyperAdapter(16, 8, 5, 3, generator=torch.Generator().manual_seed(0))
    core = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    for u, v in ((adapter.down_u, adapter.down_v), (adapter.up_u, adapter.up_v)):
        for domain in range(3):
            product = u.weight[domain].T @ core @ v.weight[domain].T
            assert torch.linalg.matrix_rank(product) == 5
        assert not torch.equal(u.weight[0], u.weight[1])
    assert not adapter.down_v.bias.any()
    assert not adapter.up_v.bias.any()
    assert adapter.down_u.bias is None
    assert adapter.up_u.bias is None


def test_the_core_is_each_rows_own_and_may_be_negative():
    hyper = HyperNetwork(MLP(4, (6,)), 3, hidden_sizes=(8,))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    core = hyper(x)
    assert core.shape == (6, 3, 3)
    assert (core < 0).any()
    assert len({tuple(row) for row in core.flatten(1).tolist()}) == 6
    torch.testing.assert_close(core[2:4], hyper(x[2:4]))
    assert hyper(x[:0]).shape == (0, 3, 3)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_no_matrix_of_weights_is_made_for_a_row():
    rows, features, width, core = 64, 128, 32, 7
    adapter = HyperAdapter(features, width, core, 2)
    h, i = torch.randn(rows, features), torch.randn(rows, core, core)
    route = Route.hard(torch.arange(rows) % 2, 2)
    with Largest() as largest:
        adapter(h, i, route).sum().backward()
    assert largest.numbers < rows * features * width / 10
    assert largest.numbers <= rows * max(features, core * core)


@pytest.mark.parametrize("adapters", [1, 2, 3])
def test_the_last_hidden_layers_have_adapters(adapters):
    net = Net(hidden_sizes=(7, 6, 5), hamur=HAMUR(name="hamur", adapters=adapters))
    widths = [one.up_v.out_features for one in net.backbone.tower.adapters]
    assert widths == [7, 6, 5][-adapters:]
    assert net.backbone.tower.out_features == net.backbone.out_features == 5


def test_an_adapter_acts_after_its_layer_and_before_the_next():
    """With updates made constant, c: the last layer's output is ReLU(W (h + c)) + c."""
    net = Net(hidden_sizes=(4, 4), hamur=HAMUR(name="hamur", adapters=2))
    tower = net.backbone.tower.eval()
    with torch.no_grad():
        for adapter in tower.adapters:
            adapter.norm.weight.zero_()
            adapter.norm.bias.fill_(2)
    x, first, last = torch.randn(5, 7), *(block.linear.weight[1] for block in tower.blocks)
    h = (x @ first.T).relu() + 2
    expected = (h @ last.T).relu() + 2
    torch.testing.assert_close(tower(x, Route.hard(torch.ones(5), 3)), expected)


def test_towers_and_outputs_are_each_domains_own_unless_shared():
    net = Net(batch_norm=True, dropout=0.4)
    assert all(type(block) is DomainBlock for block in net.backbone.tower.blocks)
    assert all(block.norm is not None for block in net.backbone.tower.blocks)
    assert type(net.head) is DomainLinear
    assert {m.p for m in net.backbone.tower.blocks.modules() if isinstance(m, Dropout)} == {0.4}
    shared = Net(batch_norm=True, hamur=HAMUR(name="hamur", towers="shared"))
    assert list(shared.backbone.tower.blocks) == list(shared.plain.children())
    assert all(type(block) is Block for block in shared.backbone.tower.blocks)
    assert type(shared.head) is Linear


@pytest.mark.parametrize("position", ["shared_path", "after_activation"])
def test_dropout_stands_where_the_model_wants_it(position):
    """Zeros that come after the norm stay zeros; those before it are moved."""
    net = Net(hidden_sizes=(200,), dropout=0.5, batch_norm=True, dropout_position=position)
    block = net.backbone.tower.blocks[0]
    with torch.no_grad():
        block.norm.bias.fill_(100)
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    zeros = (block(x, Route.hard(torch.zeros(50), 3)) == 0).double().mean().item()
    assert zeros == pytest.approx(0.5 if position == "after_activation" else 0.0, abs=0.02)


def test_domains_without_rows_get_no_gradient():
    net = Net(batch_norm=True)
    route = Route.hard(torch.tensor([1, 1, 1, 1]), 3)
    vector = net.backbone.tower(torch.randn(4, 7), route)
    net.head(vector, route).sum().backward()
    own = [
        p
        for module in (net.backbone.tower.blocks, net.backbone.tower.adapters, net.head)
        for p in module.parameters()
    ]
    assert len(own) == 8 + 8 + 2  # two layers with norms, the adapter with its norm, the output
    for parameter in own:
        assert parameter.shape[0] == 3
        assert not parameter.grad[[0, 2]].any()
    assert all(p.grad.any() for p in net.backbone.tower.hyper.out.parameters())


def test_the_configuration_is_the_same_after_use():
    """The authors' code appends k² to the caller's list of widths: a second model differs."""
    hamur = HAMUR(name="hamur", hyper_sizes=(9,), k=4)
    before = hamur.model_copy(deep=True)
    names = [{n: p.shape for n, p in Net(hamur=hamur).backbone.named_parameters()} for _ in "ab"]
    assert hamur == before
    assert names[0] == names[1]
    assert names[0]["tower.hyper.hidden.0.linear.weight"] == (9, 7)
    assert names[0]["tower.hyper.out.weight"] == (16, 9)


def test_its_defaults_are_the_papers():
    hamur = HAMUR(name="hamur")
    assert (hamur.k, hamur.width, hamur.hyper_sizes, hamur.adapters) == (35, 32, (64,), 1)


def test_more_adapters_than_layers_are_refused():
    with pytest.raises(AdapterError, match="adapters is 3, but the tower has 2 hidden layers"):
        Net(hamur=HAMUR(name="hamur", adapters=3))
    plain = MLP(4, (3,))
    with pytest.raises(AdapterError, match="use at most 1"):
        HyperTower(plain, 2, adapters=2, core=2, width=2, hyper_sizes=(2,), per_domain=True)


@pytest.mark.parametrize(
    "wrong",
    [{"adapters": 0}, {"k": 0}, {"width": 0}, {"hyper_sizes": ()}, {"towers": "none"}],
    ids=str,
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        HAMUR(name="hamur", **wrong)


def test_its_recipes():
    base = Stage(name="", learning_rate=0.01)
    (train,) = HAMUR(name="hamur").stages(base, norm=False)
    assert (train.name, train.trains, train.route) == ("train", ("*",), "hard")
    tuned = HAMUR(name="hamur", recipe="tuned").stages(base, norm=False)
    assert [stage.name for stage in tuned] == ["train", "retrain"]
