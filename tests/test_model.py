import pytest
import torch
from torch.utils._pytree import tree_leaves

from loractr.adapters import adapted
from loractr.backbones import BACKBONES, ModelConfig
from loractr.batch import Bag, Batch, Route
from loractr.config import METHODS, RunConfig
from loractr.errors import UsageError
from loractr.layers.dropout import Dropout
from loractr.model import CTRModel, build, build_plain, count_parameters
from loractr.schema import Division, Field, Schema

GENDER = Division(name="gender", column="gender", domains=("F", "M"))
AGE = Division(name="age", column="age", domains=("young", "middle", "old"))


def schema() -> Schema:
    fields = (
        Field(name="user", size=11),
        Field(name="item", size=7),
        Field(name="age", kind="numerical"),
        Field(name="tags", kind="sequence", size=5),
        Field(name="city", size=6, embedding_size=3),
    )
    return Schema(fields=fields, divisions=(GENDER, AGE))


def batch(rows: int, seed: int = 0, route: Route | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def ids(size: int, count: int) -> torch.Tensor:
        return torch.randint(0, size, (count,), generator=generator, dtype=torch.int32)

    return Batch(
        ids=torch.stack([ids(size, rows) for size in (11, 7, 6)], 1),
        numbers=torch.randn(rows, 1, generator=generator),
        row=torch.arange(rows),
        route=route or Route.none(),
        sequences={"tags": Bag(ids(5, 2 * rows), 2 * torch.arange(rows + 1))},
    )


def model(backbone: str = "deepfm", **options: object) -> CTRModel:
    config = ModelConfig(
        backbone=backbone, embedding_size=4, hidden_sizes=(8, 5), embedding_std=1.0, **options
    )
    return build_plain(config, schema(), torch.Generator().manual_seed(0))


def run_config(method: dict[str, object], **options: object) -> RunConfig:
    return RunConfig.model_validate(
        {"data": {"source": "synthetic"}, "model": {"hidden_sizes": [8, 5]}, "method": method}
        | options
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_the_logit_is_the_head_on_the_hidden_vector_plus_the_finished_terms(name):
    made, rows = model(name).double().eval(), batch(5)
    hidden = made.backbone(made.embedding(rows), Route.none())
    weight, bias = made.head.weight[0], made.head.bias[0]
    for n, logit in enumerate(made(rows)):
        expected = weight @ hidden.vector[n] + bias
        if hidden.logit is not None:
            expected = expected + hidden.logit[n]
        torch.testing.assert_close(logit, expected)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("rows", [0, 1, 6])
def test_any_number_of_rows_can_be_trained_on_and_scored(name, rows):
    made = model(name, batch_norm=True, dropout=0.5, embedding_dropout=0.5)
    logits = made(batch(rows))
    assert logits.shape == (rows,)
    logits.sum().backward()
    assert made.eval()(batch(rows)).shape == (rows,)


@pytest.mark.parametrize("name", BACKBONES)
def test_in_evaluation_a_score_does_not_depend_on_the_rows_beside_it(name):
    made = model(name, batch_norm=True, dropout=0.5).double().eval()
    rows = batch(6)
    bag = rows.sequences["tags"]
    alone = Batch(
        rows.ids[3:4],
        rows.numbers[3:4],
        rows.row[3:4],
        sequences={"tags": Bag(bag.values[6:8], torch.tensor([0, 2]))},
    )
    torch.testing.assert_close(made(alone), made(rows)[3:4], rtol=1e-10, atol=1e-10)


def test_the_tower_of_multiloras_movielens_has_the_papers_number_of_parameters():
    sizes = {"user": 6040, "movie": 3706, "gender": 2, "occupation": 21, "zip": 3439}
    sizes |= {"first_genre": 18, "domain_age": 3}
    fields = [Field(name=name, size=size + 1) for name, size in sizes.items()]
    paper = Schema(fields=(*fields, Field(name="age", kind="numerical")), divisions=(AGE,))
    config = ModelConfig(backbone="mlp", hidden_sizes=(256, 128), batch_norm=True)
    counts = build_plain(config, paper, torch.Generator()).parameter_counts()
    embedding = (13_229 + 7) * 16  # the paper's rows, and an unknown one for each field
    assert counts == {
        "total": 62_977 + embedding,
        "embedding": embedding,
        "backbone": 62_977,
        "adapters": 0,
    }


def test_adapters_are_counted_apart_from_the_layers_they_wrap():
    rank, domains = 2, 2
    method = {"name": "mlora", "rank": {"fixed": rank}}
    plain = build(run_config({"name": "mix"}), schema()).parameter_counts()
    counts = build(run_config(method), schema()).parameter_counts()
    wide = 2 * 16 + 16 + 3 + 1  # user, item; tags; city; age
    per_domain = rank * (wide + 8) + 8 + rank * (8 + 5) + 5
    assert counts["adapters"] == domains * per_domain
    assert counts["backbone"] == plain["backbone"]
    assert counts["embedding"] == plain["embedding"]
    assert counts["total"] == plain["total"] + domains * per_domain


def test_a_frozen_table_counts_as_embedding_though_no_optimiser_sees_it():
    field = Field(name="item", size=9, pretrained="a", trainable=False)
    made = build_plain(
        ModelConfig(backbone="mlp"),
        Schema(fields=(field,)),
        torch.Generator(),
        pretrained={"item": torch.randn(9, 6)},
    )
    assert made.parameter_counts()["embedding"] == 9 * 6
    assert not list(made.embedding.parameters())


def test_the_seed_alone_decides_the_weights_and_the_shared_part_starts_alike_everywhere():
    mix = build(run_config({"name": "mix"}, seed=3), schema()).state_dict()
    torch.manual_seed(99)
    again = build(run_config({"name": "mix"}, seed=3), schema()).state_dict()
    assert all(torch.equal(mix[name], again[name]) for name in mix)
    other = build(run_config({"name": "mix"}, seed=4), schema()).state_dict()
    assert not torch.equal(mix["head.weight"], other["head.weight"])
    adapted_ = build(run_config({"name": "mlora", "rank": {"fixed": 1}}, seed=3), schema())
    shared = {name.replace(".base", ""): t for name, t in adapted_.state_dict().items()}
    assert all(torch.equal(mix[name], shared[name]) for name in mix)


def test_adapters_follow_the_batchs_route_row_by_row():
    config = run_config({"name": "mlora", "rank": {"fixed": 2}, "divisions": ["age"]})
    made = build(config, schema()).double().eval()
    assert made.routing.divisions == (1,)
    for _, layer in adapted(made):
        torch.nn.init.normal_(layer.up, generator=torch.Generator().manual_seed(0))
    age = torch.tensor([2, 1, -1, 0, 2, 1])
    mixed = made(batch(6, route=Route.hard(age, experts=3)))
    for n in range(6):
        of_one = made(batch(6, route=Route.hard(age[n].expand(6), experts=3)))
        torch.testing.assert_close(mixed[n], of_one[n], rtol=1e-10, atol=1e-10)
    assert mixed.unique().numel() == 6
    assert not torch.isclose(mixed, made(batch(6))).all()


def test_a_plain_model_reads_no_division():
    made = build(run_config({"name": "mix"}), schema())
    assert made.routing.divisions == ()
    routed = batch(6, route=Route.hard(torch.tensor([0, 1, 0, 1, 0, 1])))
    assert torch.equal(made(routed), made(batch(6)))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_frozen_model_keeps_every_tensor_bit_identical_while_it_runs_in_training_mode(name):
    made = model(name, batch_norm=True, dropout=0.5).requires_grad_(False).train()
    before = {key: tensor.clone() for key, tensor in made.state_dict().items()}
    made(batch(6))
    assert all(torch.equal(before[key], tensor) for key, tensor in made.state_dict().items())


def test_dropout_on_the_shared_path_reaches_the_layers_that_adapters_wrap():
    model_ = {"hidden_sizes": [8, 5], "dropout_position": "shared_path", "dropout": 0.5}
    made = build(run_config({"name": "mlora", "rank": {"fixed": 2}}, model=model_), schema())
    rates = [layer.base.dropout.p for _, layer in adapted(made)]
    assert rates == [0.5, 0.5]
    made.set_dropout(0.0)
    assert torch.equal(made(batch(6)), made.eval()(batch(6)))


def test_dropout_rates_can_be_set_and_go_back_to_the_configured_ones():
    made = model(dropout=0.2, embedding_dropout=0.1)

    def rates() -> tuple[set[float], float]:
        hidden = {m.p for m in made.backbone.modules() if isinstance(m, Dropout)}
        return hidden, made.embedding.dropout.p

    assert rates() == ({0.2}, 0.1)
    made.set_dropout(0.5, 0.0)
    assert rates() == ({0.5}, 0.0)
    made.set_dropout()
    assert rates() == ({0.2}, 0.1)


def test_an_unfitted_schema_is_refused():
    unfitted = Schema(fields=(Field(name="user"),), divisions=(GENDER,))
    with pytest.raises(UsageError, match="not fitted"):
        build(run_config({"name": "mix"}), unfitted)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_it_compiles_to_one_graph_for_batches_of_any_size(name):
    torch.compiler.reset()
    made = model(name).eval()
    compiled = torch.compile(made, fullgraph=True, backend="eager", dynamic=True)
    for rows in (6, 9, 20_000):  # the last one is read by other kernels, where they are built
        torch.testing.assert_close(compiled(batch(rows)), made(batch(rows)))


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_it_exports_strictly_with_a_dynamic_number_of_rows(name):
    made, rows = model(name).eval(), batch(6)
    shapes = torch.export.ShapesCollection()
    for leaf in tree_leaves(rows):
        shapes[leaf] = {0: torch.export.Dim.AUTO}
    exported = torch.export.export(made, (rows,), dynamic_shapes=shapes, strict=True).module()
    for count in (2, 13, 20_000):
        torch.testing.assert_close(exported(batch(count, seed=1)), made(batch(count, seed=1)))


@pytest.mark.parametrize("position", ["after_activation", "shared_path"])
@pytest.mark.parametrize("name", METHODS)
def test_every_dropout_of_a_fresh_model_has_the_models_rate_and_place(name, position):
    """What `set_dropout` sets at the start of a stage is what was built; none is left out or
    stands elsewhere."""
    divisions = ["gender", "age"] if name.startswith("multilora") else ["gender"]
    config = run_config(
        {"name": name, "divisions": divisions},
        model={"hidden_sizes": [16, 16], "dropout": 0.25, "dropout_position": position},
    )
    backbone = build(config, schema()).backbone
    found = {place: m for place, m in backbone.named_modules() if isinstance(m, Dropout)}
    assert found
    assert {module.p for module in found.values()} == {0.25}
    early = ("linear.dropout", "linear.base.dropout", "before")
    for place in found:
        if not place.startswith("tower.main."):  # STAR's layers hold theirs in one place for both
            assert place.endswith(early) == (position == "shared_path"), place


def test_what_copies_of_the_shared_model_have_of_their_own_is_what_they_train():
    """PLATE's three parts that domains tune: 2 prompts, the network of the user's, linear terms."""
    config = run_config({"name": "plate", "prompts": 3, "prompt_sizes": [2]})
    made = build(config, schema())
    front = 2 * 16 + 3 * 16 + (16 * 2 + 2) + (2 * 3 + 3)
    linear = 11 + 7 + 5 + 6 + 1
    one = made.parameter_counts()
    assert count_parameters(config, made, 2) == {
        "total": one["total"] + 2 * (front + linear),
        "embedding": one["embedding"] + 2 * linear,
        "backbone": one["backbone"] + 2 * front,
        "adapters": 0,
    }


@pytest.mark.parametrize(("name", "times"), [("mix", 1), ("single", 2), ("finetune", 3)])
def test_whole_models_of_domains_are_counted_whole(name, times):
    config = run_config({"name": name})
    made = build(config, schema())
    owners = len(config.method.owners(schema()))
    expected = {part: times * count for part, count in made.parameter_counts().items()}
    assert count_parameters(config, made, owners) == expected
