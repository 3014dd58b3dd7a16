"""PLATE: its prompts, the user's place among the fields, its stages, and what they train."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from loractr.baselines.plate import PLATE, Prompts
from loractr.batch import Route, Routing
from loractr.config import parse_config
from loractr.data.loader import collate
from loractr.data.rows import Rows
from loractr.errors import ConfigError, UsageError
from loractr.layers.embedding import Embedded, Embedding, Widths
from loractr.model import build
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage, matches
from loractr.training import fit

TAB = Division(name="tab", column="tab", domains=("a", "b", "c"))
SCHEMA = Schema(
    fields=(
        Field(name="clicked", kind="sequence", size=4),
        Field(name="age", kind="numerical"),
        Field(name="ready", size=3, pretrained="r.csv", embedding_size=2, trainable=False),
        Field(name="shop", size=5, embedding_size=5),
        Field(name="item", size=7),
        Field(name="user", size=9),
        Field(name="seen", kind="sequence", size=6, embedding_size=5),
    ),
    divisions=(TAB,),
)
USERS = Schema(
    fields=(Field(name="user", size=9, unknown_rows=1), Field(name="item", size=7, unknown_rows=1)),
    divisions=(TAB,),
)
WIDTHS = Widths(size=2, fields=3, others=(), numbers=0)


def prompts(**options):
    sizes = {"user": 1, "domains": 2, "prompts": 3, "hidden_sizes": (4,), "temperature": 1.0}
    return Prompts(WIDTHS, generator=seeded(), **{**sizes, **options}).double()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def embedded(rows):
    vectors = torch.randn(rows, 3, 2, generator=seeded(1)).double()
    return Embedded(vectors, (torch.ones(rows, 4),), torch.ones(rows, 1), torch.arange(rows))


def route_of(*domains):
    return Route.hard(torch.tensor(domains, dtype=torch.int64), 2)


def config_of(backbone="deepfm", **plate):
    return parse_config(
        {
            "data": {"source": "synthetic"},
            "model": {"backbone": backbone, "embedding_size": 2, "hidden_sizes": [6]},
            "method": {"name": "plate", **plate},
            "training": {"batch_size": 64, "epochs": 3, "learning_rate": 0.02},
        }
    )


def test_two_vectors_are_appended_and_all_else_stays():
    front, features = prompts(), embedded(3)
    route = route_of(1, -1, 0)
    found, passed_on = front(features, route)
    assert front.widths == Widths(size=2, fields=5, others=(), numbers=0)
    assert found.vectors.shape == (3, 5, 2)
    assert torch.equal(found.vectors[:, :3], features.vectors)
    assert found.others is features.others
    assert found.numbers is features.numbers
    assert found.first_order is features.first_order
    assert passed_on is route


def test_the_domain_prompt_is_the_domains_row_and_zero_without_one():
    front = prompts()
    own = front(embedded(3), route_of(1, -1, 0))[0].vectors[:, 3]
    assert own.tolist() == [front.domains[1].tolist(), [0.0, 0.0], front.domains[0].tolist()]
    assert not front(embedded(3), Route.none())[0].vectors[:, 3].any()


def test_the_user_prompt_worked_by_hand():
    """e = (1, -2): hidden ReLU(1 - 6, 1) = (0, 1); scores (0, ½ log 2, 0) / ½: odds 1, 2, 1."""
    front = prompts(hidden_sizes=(2,), temperature=0.5)
    features = embedded(1)
    features.vectors[0, 1] = torch.tensor([1.0, -2.0])
    with torch.no_grad():
        linear = front.hidden.get_submodule("0").linear
        linear.weight.copy_(torch.tensor([[1.0, 3.0], [1.0, 0.0]]))
        front.scores.weight.copy_(torch.tensor([[5.0, 0.0], [7.0, np.log(2) / 2], [9.0, 0.0]]))
        front.memory.copy_(torch.tensor([[4.0, 0.0], [0.0, 2.0], [8.0, 4.0]]))
    found = front(features, route_of(0))[0].vectors[0, 4]
    torch.testing.assert_close(found, torch.tensor([3.0, 2.0]).double())  # ¼, ½, ¼


def gradient_of_the_scores(temperature):
    front = prompts(temperature=temperature, hidden_sizes=(32, 32), prompts=10)
    front(embedded(8), route_of(*[0] * 8))[0].vectors[:, 4].square().sum().backward()
    return front


def test_the_user_prompt_depends_on_the_user_and_can_learn():
    front = prompts(hidden_sizes=(32, 32), prompts=10)
    personal = front(embedded(8), route_of(*[0] * 8))[0].vectors[:, 4]
    assert len({tuple(row) for row in personal.tolist()}) == 8
    trained = gradient_of_the_scores(PLATE(name="plate").temperature)
    for name, parameter in trained.named_parameters():
        if name != "domains":
            assert parameter.grad.any(), name


def test_at_the_authors_temperature_the_network_learns_next_to_nothing():
    warm, cold = gradient_of_the_scores(1.0), gradient_of_the_scores(1e-5)
    warm, cold = (front.scores.weight.grad.abs().max() for front in (warm, cold))
    assert cold < 1e-6 * warm


def test_prompts_start_within_a_hundredth_and_apart():
    front = prompts(domains=50, prompts=40)
    for start in (front.domains, front.memory):
        assert 0.009 < start.abs().max() <= 0.01
        assert start.mean().abs() < 0.002
        assert not torch.equal(start[0], start[1])


def batch_of(schema, rows=3):
    """Rows of which each id is n + 1 in row n; sequences of one id."""
    names = [f.name for f in schema.sequences]
    ids = np.arange(1, rows + 1, dtype=np.int32)
    sequences = {name: (ids, np.arange(rows + 1)) for name in names}
    return Rows(
        ids=np.stack([ids] * len(schema.categorical), 1),
        numbers=np.ones((rows, len(schema.numerical)), np.float32),
        domains=np.zeros((rows, len(schema.divisions)), np.int32),
        row=np.arange(rows),
        label=ids % 2,
        sequences=sequences,
    )


@pytest.mark.parametrize("size", [2, 5])
def test_the_user_prompt_is_made_of_the_users_own_vector(size):
    """Wherever the embedding puts a field, among frozen and trained ones, sequences and others."""
    ready = {"ready": torch.randn(3, 2, generator=seeded(5))}
    embedding = Embedding(SCHEMA, size=size, std=1.0, pretrained=ready, generator=seeded())
    rows = batch_of(SCHEMA, 2)
    features = embedding(collate(rows, np.arange(2), Routing(divisions=(0,)), [3]))
    widths = {f.name: f.embedding_size or size for f in SCHEMA.fields if f.kind != "numerical"}
    common = [name for name, width in widths.items() if width == size]
    assert len(common) == (4 if size == 2 else 5)
    places = {}
    for name in common:
        plate = PLATE(name="plate", user_field=name)
        places[name] = plate.front(embedding.widths, SCHEMA, seeded()).user
        table = next(t for t in embedding.tables.values() if name in [f.name for f in t.fields])
        first = table.first_rows[[f.name for f in table.fields].index(name)]
        expected = table.weight[first + 1 : first + 3]
        assert torch.equal(features.vectors[:, places[name]], expected), name
    assert sorted(places.values()) == list(range(len(common)))


@pytest.mark.parametrize("name", ["age", "shop", "nobody"])
def test_a_user_field_without_a_vector_of_the_common_width_is_refused(name):
    ready = {"ready": torch.zeros(3, 2)}
    widths = Embedding(SCHEMA, size=2, pretrained=ready).widths
    with pytest.raises(ConfigError) as error:
        PLATE(name="plate", user_field=name).front(widths, SCHEMA, seeded())
    assert f"field {name!r} has no embedding of the common width 2" in str(error.value)
    assert "'ready', 'item', 'user', 'clicked' have one" in str(error.value)
    assert "Fix: set method.user_field" in str(error.value)


def test_the_first_field_is_the_users_by_default():
    widths = Embedding(USERS, size=2).widths
    assert PLATE(name="plate").front(widths, USERS, seeded()).user == 0
    age = Field(name="age", kind="numerical")
    numbers_first = USERS.model_copy(update={"fields": (age, *USERS.fields)})
    with pytest.raises(ConfigError, match="field 'age' has no embedding"):
        PLATE(name="plate").front(widths, numbers_first, seeded())


def silent(width):
    """A schema whose ready embeddings do not tell their width, and the widths with them."""
    fields = (Field(name="ready", size=3, pretrained="r.csv"), Field(name="user", size=9))
    schema = Schema(fields=fields, divisions=(TAB,))
    return schema, Embedding(schema, size=2, pretrained={"ready": torch.zeros(3, width)}).widths


def test_ready_embeddings_must_tell_their_width_where_it_is_the_common_one():
    schema, widths = silent(5)
    assert PLATE(name="plate", user_field="user").front(widths, schema, seeded()).user == 0
    schema, widths = silent(2)
    with pytest.raises(ConfigError, match="'ready' do not tell theirs") as error:
        PLATE(name="plate", user_field="user").front(widths, schema, seeded())
    assert "set embedding_size" in str(error.value)


def test_data_without_domains_are_refused():
    schema = Schema(fields=(Field(name="user", size=9),))
    with pytest.raises(UsageError, match="method 'plate' works on the domains of a division"):
        PLATE(name="plate").front(Embedding(schema, size=2).widths, schema, seeded())


def stages_of(**options):
    plate, base = PLATE(name="plate", **options), Stage(name="", learning_rate=0.01)
    return plate.stages(base, norm=False), plate.domain_stages(base, "tab", "b")


def test_each_domain_tunes_a_copy_of_the_pretrained_model():
    (pretrain,), (prompt,) = stages_of()
    assert PLATE(name="plate").domain_models == "from_base"
    assert (pretrain.name, pretrain.rows) == ("pretrain", None)
    assert (prompt.name, prompt.rows) == ("prompt", ("tab", "b"))


def test_or_all_domains_are_tuned_together():
    (pretrain, prompt), none = stages_of(per_domain=False)
    assert PLATE(name="plate", per_domain=False).domain_models == "none"
    assert (pretrain.name, prompt.name, prompt.rows, none) == ("pretrain", "prompt", None, ())


def test_the_tuned_recipe_pretrains_twice_with_frozen_prompts():
    (first, second), (prompt,) = stages_of(recipe="tuned")
    assert [first.name, second.name, prompt.name] == ["pretrain", "retrain", "prompt"]
    assert not any(matches("front.domains", stage.trains) for stage in (first, second))
    assert second.learning_rate == pytest.approx(0.003)
    assert prompt.learning_rate == 0.01


PROMPTS = {
    "front.domains",
    "front.memory",
    "front.hidden.0.linear.weight",
    "front.hidden.0.linear.bias",
    "front.hidden.1.linear.weight",
    "front.hidden.1.linear.bias",
    "front.scores.weight",
    "front.scores.bias",
}


@pytest.mark.parametrize(("backbone", "linear"), [("deepfm", True), ("mlp", False)])
def test_the_second_stage_trains_prompts_and_linear_term_alone(backbone, linear):
    model = build(config_of(backbone), USERS)
    names = {name for name, _ in model.named_parameters()}
    (pretrain,), (prompt,) = stages_of()
    tuned = {name for name in names if matches(name, prompt.trains)}
    assert tuned == PROMPTS | ({"embedding.tables.size_2.first_order"} if linear else set())
    assert {name for name in names if matches(name, pretrain.trains)} == names - PROMPTS


class Flipped:
    """Rows of some domains. In domain b odd users click, in a and c even ones."""

    schema = USERS

    def __init__(self, *domains):
        self.train, self.validation = (self.rows(domains, seed) for seed in (1, 2))

    def rows(self, domains, seed):
        rng, count = np.random.default_rng(seed), 1000
        ids = np.stack([rng.integers(1, n, count) for n in (9, 7)], 1).astype(np.int32)
        domain = rng.choice(domains, (count, 1)).astype(np.int32)
        likes = (ids[:, 0] % 2 == 1) == (domain[:, 0] == 1)
        return Rows(
            ids=ids,
            numbers=np.zeros((count, 0), np.float32),
            domains=domain,
            row=np.arange(count),
            label=(rng.random(count) < np.where(likes, 0.9, 0.1)).astype(np.float32),
            sequences={},
        )


def test_prompts_alone_turn_the_users_taste_around_where_a_domain_has_another():
    config = config_of(user_field="user")
    model = build(config, USERS)
    fit(model, Flipped(0, 2), config.stages(), seed=0)
    (prompt,) = config.domain_stages("tab", "b")
    prompts_only = {"trains": ("front.*",), "select": "pooled_auc", "epochs": 30, "patience": 30}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = fit(model, Flipped(0, 1, 2), [prompt.model_copy(update=prompts_only)], seed=0)
    assert told.validations[0].value < 0.2
    assert told.stages[0].value > 0.85
    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == PROMPTS


@pytest.mark.parametrize(
    "wrong",
    [{"prompts": 0}, {"prompt_sizes": ()}, {"temperature": 0}, {"divisions": ("tab", "hour")}],
    ids=str,
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        PLATE(name="plate", **wrong)
