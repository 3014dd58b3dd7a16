"""STAR: hand-worked numbers of its norm and layer, its start, and what it does to a network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from loractr.backbones import BACKBONES, ModelConfig
from loractr.baselines.star import STAR, PartitionedNorm, StarLinear, StarTower
from loractr.batch import Groups, Route
from loractr.errors import UsageError
from loractr.layers.dropout import Dropout
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.linear import Linear
from loractr.layers.mlp import MLP
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage

SCHEMA = Schema(
    fields=(Field(name="user", size=9),),
    divisions=(
        Division(name="tab", column="tab", domains=("a", "b", "c")),
        Division(name="hour", column="hour", domains=("day", "night")),
    ),
)
WIDTHS = Widths(size=3, fields=2, others=(), numbers=1)


class Net:
    """A backbone and its head, STAR attached."""

    def __init__(self, backbone="mlp", widths=WIDTHS, star=None, **options):
        config = ModelConfig(backbone=backbone, hidden_sizes=(6, 5), **options)
        random = torch.Generator().manual_seed(0)
        self.backbone = BACKBONES[backbone](config, widths, random)
        self.head = Linear(self.backbone.out_features, 1, generator=random)
        self.attached = (star or STAR(name="star")).attach(self, SCHEMA, random)
        self.backbone.double()
        self.head.double()

    def __call__(self, features, route):
        hidden = self.backbone(features, route)
        logit = self.head(hidden.vector, route).squeeze(1)
        return logit if hidden.logit is None else logit + hidden.logit


def features(rows, widths=WIDTHS):
    random = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.double)

    return Embedded(
        vectors=normal(rows, widths.fields, widths.size),
        others=(),
        numbers=normal(rows, widths.numbers),
        first_order=normal(rows),
    )


def groups(*domains, count=2):
    return Groups.of(torch.tensor(domains, dtype=torch.int64), count)


def hand_norm():
    """One feature, two domains: weight 2 · (3, 10), bias 1 + (0, 5), running (4, 0) and (9, 1)."""
    norm = PartitionedNorm(1, 2, eps=0.0).double()
    with torch.no_grad():
        norm.weight.fill_(2)
        norm.bias.fill_(1)
        norm.own_weight.copy_(torch.tensor([[3.0], [10.0]]))
        norm.own_bias.copy_(torch.tensor([[0.0], [5.0]]))
        norm.running_mean.copy_(torch.tensor([[4.0], [0.0]]))
        norm.running_var.copy_(torch.tensor([[9.0], [1.0]]))
    return norm


def column(*values):
    return torch.tensor(values, dtype=torch.double)[:, None]


def test_the_norm_in_evaluation_worked_by_hand():
    """Domain 0: 6 (x - 4) / 3 + 1. Domain 1: 20 x + 6. None: 2 (x - 2) / √5 + 1."""
    found = hand_norm().eval()(column(7, 7, 7, 4), groups(0, 1, -1, 0))
    torch.testing.assert_close(found, column(7, 146, 2 * 5 / 5**0.5 + 1, 1))


def test_the_norm_in_training_worked_by_hand():
    """Domain 0 has 1, 3, 5: mean 3, variance 8/3, unbiased 4. Domain 1 has one row: running."""
    norm = hand_norm().train()
    found = norm(column(1, 7, 3, 5, 7), groups(0, 1, 0, 0, -1))
    edge = 6 * 2 / (8 / 3) ** 0.5
    none = 2 * 5 / 5**0.5 + 1  # the running statistics from before the batch
    torch.testing.assert_close(found, column(1 - edge, 146, 1, 1 + edge, none))
    torch.testing.assert_close(norm.running_mean, column(4 + 0.1 * (3 - 4), 0))
    torch.testing.assert_close(norm.running_var, column(9 + 0.1 * (4 - 9), 1))


def test_each_domain_is_normalised_as_torch_would_normalise_its_rows_alone():
    x = features(30).flat()
    domain = torch.randint(-1, 3, (30,), generator=torch.Generator().manual_seed(2))
    norm, alone = PartitionedNorm(7, 3).double(), [torch.nn.BatchNorm1d(7).double() for _ in "abc"]
    for _ in range(3):
        found = norm(x, groups(*domain.tolist(), count=3))
        for t, one in enumerate(alone):
            torch.testing.assert_close(found[domain == t], one(x[domain == t]))
        x = x * 1.7 + 0.3
    for t, one in enumerate(alone):
        torch.testing.assert_close(norm.running_mean[t], one.running_mean)
        torch.testing.assert_close(norm.running_var[t], one.running_var)


def test_a_frozen_norm_uses_its_running_statistics_and_leaves_them_alone():
    norm = hand_norm().train().requires_grad_(False)
    found = norm(column(7, 4), groups(0, 0))
    torch.testing.assert_close(found, column(7, 1))
    assert norm.running_mean.tolist() == [[4.0], [0.0]]
    norm.own_bias.requires_grad_(True)
    torch.testing.assert_close(norm(column(7, 4), groups(0, 0)), column(7, -5))


def test_the_compiled_norm_is_the_eager_one_in_training_too():
    torch.compiler.reset()
    norm = hand_norm().train()
    other = copy.deepcopy(norm)
    compiled = torch.compile(other, fullgraph=True, backend="eager", dynamic=True)
    for domains in ([0, 0, 1, -1, 0], [1, 1, 1], [0], []):
        x = column(*range(len(domains)))
        torch.testing.assert_close(compiled(x, groups(*domains)), norm(x, groups(*domains)))
    torch.testing.assert_close(other.running_mean, norm.running_mean)
    torch.testing.assert_close(other.running_var, norm.running_var)


def test_the_layer_worked_by_hand():
    layer = StarLinear(2, 1, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -1.0]]))
        layer.bias.fill_(1)
        layer.own_weight.copy_(torch.tensor([[[3.0, 1.0]], [[0.0, 2.0]]]))
        layer.own_bias.copy_(torch.tensor([[10.0], [20.0]]))
    x = torch.tensor([[1.0, 4.0]] * 3, dtype=torch.double)
    # (6, -1) (1, 4) + 11;  (0, -2) (1, 4) + 21;  (2, -1) (1, 4) + 1
    assert layer(x, groups(0, 1, -1)).tolist() == [[13.0], [13.0], [-1.0]]
    x = torch.tensor([[1.0, 0.0]] * 2, dtype=torch.double)
    assert layer(x, groups(1, 0)).tolist() == [[21.0], [17.0]]


def test_a_fresh_layer_is_glorot_times_ones_and_no_bias():
    layer = StarLinear(300, 200, 4, generator=torch.Generator().manual_seed(0))
    assert layer.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.01)
    assert torch.equal(layer.own_weight, torch.ones(4, 200, 300))
    assert not layer.bias.any()
    assert not layer.own_bias.any()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_fresh_one_is_the_shared_network_for_every_domain(batch_norm):
    """But for the auxiliary network: without its output, a plain ReLU network on x / √(1 + eps)."""
    net = Net(batch_norm=batch_norm)
    net.backbone.eval()
    with torch.no_grad():
        net.head.auxiliary.weight.zero_()
    x = features(8)
    h, scale = x.flat(), (1 + 1e-5) ** -0.5
    h = h * scale
    for block in net.backbone.tower.main:
        h = F.relu(h @ block.linear.weight.T * (scale if batch_norm else 1))
    expected = h @ net.head.main.weight[0]
    for domains in ([0] * 8, [2] * 8, [-1] * 8, [0, 1, 2, -1] * 2):
        torch.testing.assert_close(net(x, Route.hard(torch.tensor(domains), 3)), expected)


def test_the_auxiliary_network_sees_input_and_domain():
    net = Net()
    with torch.no_grad():
        net.backbone.tower.domains.copy_(torch.randn(3, 16))
        net.head.main.weight.zero_()
    by_domain = {net(features(1), Route.hard(torch.tensor([t]), 3)).item() for t in (0, 1, 2, -1)}
    assert len(by_domain) == 4
    by_row = net(features(4), Route.hard(torch.tensor([1, 1, 1, 1]), 3))
    assert len(set(by_row.tolist())) == 4


@pytest.mark.parametrize("backbone", ["dcn", "autoint", "xdeepfm"])
def test_what_stands_beside_the_tower_goes_to_the_main_output(backbone):
    net = Net(backbone)
    plain = Net(backbone).backbone
    assert net.backbone.out_features == plain.out_features
    assert net.head.main.in_features == net.backbone.out_features - 32
    assert net.head.auxiliary.in_features == 32
    route = Route.hard(torch.tensor([0, 1]), 3)
    vector = net.backbone(features(2), route).vector
    tower = net.backbone.tower.auxiliary
    seen = torch.cat([features(2).flat(), net.backbone.tower.domains[:2]], 1)
    torch.testing.assert_close(vector[:, -32:], tower(seen))


def test_domains_without_rows_get_no_gradient():
    net = Net(batch_norm=True)
    net(features(6), Route.hard(torch.tensor([1, 1, -1, 1, 1, -1]), 3)).sum().backward()
    modules = (net.backbone, net.head)
    names = ("own_weight", "own_bias", "domains")
    own = [
        parameter
        for module in modules
        for name, parameter in module.named_parameters()
        if name.rpartition(".")[2] in names
    ]
    assert len(own) == 2 * (1 + 2 * 2 + 1) + 1  # input norm, two layers with norms, head; embedding
    for parameter in own:
        assert not parameter.grad[[0, 2]].any()
    assert any(parameter.grad[1].any() for parameter in own)


def test_it_keeps_the_towers_norms_and_dropout():
    norms = [name for name, m in Net().backbone.named_modules() if isinstance(m, PartitionedNorm)]
    assert norms == ["tower.norm"]
    net = Net(batch_norm=True, dropout=0.4)
    norms = [name for name, m in net.backbone.named_modules() if isinstance(m, PartitionedNorm)]
    assert norms == ["tower.norm", "tower.main.0.norm", "tower.main.1.norm"]
    assert {m.p for m in net.backbone.modules() if isinstance(m, Dropout)} == {0.4}


@pytest.mark.parametrize("position", ["shared_path", "after_activation"])
def test_dropout_stands_where_the_model_wants_it(position):
    """Zeros that come after the norm stay zeros; those before it are moved."""
    plain = MLP(4, (200,), dropout=0.5, batch_norm=True, dropout_position=position)
    tower = StarTower(plain, 1, auxiliary_sizes=(1,), domain_embedding_size=1)
    with torch.no_grad():
        tower.main[0].norm.bias.fill_(100)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    h = tower(x, Route.hard(torch.zeros(50), 1))[:, :200]
    zeros = (h == 0).double().mean().item()
    assert zeros == pytest.approx(0.5 if position == "after_activation" else 0.0, abs=0.02)


def test_it_reads_the_division_that_is_asked_for():
    assert Net().attached.divisions == ("tab",)
    net = Net(star=STAR(name="star", divisions=("hour",)))
    assert net.attached.divisions == ("hour",)
    assert net.head.main.own_weight.shape[0] == 2


def test_its_recipes():
    base = Stage(name="", learning_rate=0.01)
    (train,) = STAR(name="star").stages(base, norm=False)
    assert (train.name, train.trains, train.route, train.rows) == ("train", ("*",), "hard", None)
    tuned = STAR(name="star", recipe="tuned").stages(base, norm=False)
    assert [stage.name for stage in tuned] == ["train", "retrain"]
    assert tuned[1].learning_rate == pytest.approx(0.003)


@pytest.mark.parametrize(
    "wrong",
    [
        {"auxiliary_sizes": ()},
        {"auxiliary_sizes": (0,)},
        {"domain_embedding_size": 0},
        {"divisions": ("tab", "hour")},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        STAR(name="star", **wrong)


def test_data_without_domains_are_refused():
    with pytest.raises(UsageError, match="method 'star' works on the domains of a division"):
        STAR(name="star").natural(Schema(fields=(Field(name="user", size=9),)))
