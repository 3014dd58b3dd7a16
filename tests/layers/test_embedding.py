import numpy as np
import pytest
import torch
from torch import Tensor

from loractr.batch import Bag, Batch
from loractr.errors import ConfigError, UsageError
from loractr.layers.embedding import Embedded, Embedding
from loractr.layers.lookup import RowGradient, set_row_gradients
from loractr.schema import Field, Schema

READY = {"item": (9, 5), "seen": (6, 5)}
"""Shapes of the pretrained vectors: both frozen, of one width, hence one table."""


def schema() -> Schema:
    """Every kind of field at once, their kinds interleaved. Common width 4."""
    frozen = {"pretrained": "ready.parquet", "trainable": False}
    return Schema(
        fields=(
            Field(name="tags", kind="sequence", size=7),
            Field(name="user", size=11),
            Field(name="age", kind="numerical"),
            Field(name="city", size=5, embedding_size=3),
            Field(name="seen", kind="sequence", size=6, **frozen),
            Field(name="item", size=9, **frozen),
            Field(name="price", kind="numerical"),
            Field(name="history", kind="sequence", size=8),
            Field(name="hour", size=4),
        )
    )


SIZES = {"user": 11, "city": 5, "item": 9, "hour": 4, "tags": 7, "seen": 6, "history": 8}
ORDER = {4: ["user", "hour", "tags", "history"], 3: ["city"], 5: ["item", "seen"]}
"""Width → its fields in the order of the result: categorical ones first."""


def pretrained() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) for name, shape in READY.items()}


def embedding(**options: object) -> Embedding:
    options = {"size": 4, "std": 1.0, "first_order": True, "pretrained": pretrained()} | options
    layer = Embedding(schema(), generator=torch.Generator().manual_seed(0), **options)
    for name, parameter in layer.named_parameters():
        if "first_order" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    return layer


def batch(rows: int, seed: int = 0) -> Batch:
    """Random ids and numbers, bags of 0 to 3 ids."""
    random = np.random.default_rng(seed)

    def bag(size: int) -> Bag:
        offsets = np.concatenate([[0], random.integers(0, 4, rows).cumsum()])
        values = random.integers(0, size, offsets[-1])
        return Bag(torch.tensor(values, dtype=torch.int32), torch.tensor(offsets))

    ids = [random.integers(0, SIZES[name], rows) for name in ("user", "city", "item", "hour")]
    return Batch(
        ids=torch.tensor(np.stack(ids, 1), dtype=torch.int32),
        numbers=torch.tensor(random.normal(size=(rows, 2)), dtype=torch.float32),
        row=torch.arange(rows),
        sequences={name: bag(SIZES[name]) for name in ("tags", "seen", "history")},
    )


def ids_of(rows: Batch, name: str, n: int) -> list[int]:
    if name in rows.sequences:
        bag = rows.sequences[name]
        return bag.values[bag.offsets[n] : bag.offsets[n + 1]].tolist()
    return [int(rows.ids[n, ["user", "city", "item", "hour"].index(name)])]


def block(layer: Embedding, name: str, *, first_order: bool = False) -> Tensor:
    """The rows of one field, found by adding up the sizes of the fields before it."""
    width = next(width for width, names in ORDER.items() if name in names)
    table = layer.tables["size_5_frozen" if width == 5 else f"size_{width}"]
    before = ORDER[width][: ORDER[width].index(name)]
    first = sum(SIZES[other] for other in before)
    weight = table.first_order if first_order else table.weight
    return weight[first : first + SIZES[name]]


def mean(vectors: Tensor, ids: list[int]) -> Tensor:
    total = torch.zeros(vectors.shape[1], dtype=vectors.dtype)
    for index in ids:
        total = total + vectors[index] / len(ids)
    return total


def test_every_field_is_its_rows_averaged_as_in_plain_loops():
    layer, rows = embedding().double(), batch(6)
    out: Embedded = layer(rows)
    for n in range(6):
        vectors = {name: mean(block(layer, name), ids_of(rows, name, n)) for name in SIZES}
        torch.testing.assert_close(out.vectors[n], torch.stack([vectors[f] for f in ORDER[4]]))
        others = [vectors[name] for name in ORDER[3] + ORDER[5]]
        assert [other[n].shape for other in out.others] == [other.shape for other in others]
        for result, expected in zip(out.others, others, strict=True):
            torch.testing.assert_close(result[n], expected)


def test_the_linear_term_sums_ids_mean_bags_and_numbers():
    layer, rows = embedding().double(), batch(6)
    out = layer(rows)
    for n in range(6):
        term = rows.numbers[n].double() @ layer.numbers_first_order
        for name in SIZES:
            term = term + mean(block(layer, name, first_order=True), ids_of(rows, name, n))[0]
        torch.testing.assert_close(out.first_order[n], term)


def test_the_flat_form_holds_everything_side_by_side_in_the_stated_width():
    layer, rows = embedding(), batch(6)
    out = layer(rows)
    assert layer.widths.flat == 4 * 4 + 3 + 5 + 5 + 2 == out.flat().shape[1]
    expected = torch.cat([out.vectors.flatten(1), *out.others, rows.numbers], 1)
    assert torch.equal(out.flat(), expected)


def test_a_row_without_ids_in_a_sequence_gets_zeros():
    rows = batch(5)
    empty = Bag(torch.empty(0, dtype=torch.int32), torch.zeros(6, dtype=torch.int64))
    out = embedding()(
        Batch(rows.ids, rows.numbers, rows.row, sequences=rows.sequences | {"tags": empty})
    )
    assert not out.vectors[:, ORDER[4].index("tags")].any()


def test_a_row_does_not_depend_on_the_rows_beside_it():
    layer, rows = embedding(), batch(6)
    alone = Batch(
        ids=rows.ids[4:5],
        numbers=rows.numbers[4:5],
        row=rows.row[4:5],
        sequences={
            name: Bag(
                bag.values[bag.offsets[4] : bag.offsets[5]], bag.offsets[4:6] - bag.offsets[4]
            )
            for name, bag in rows.sequences.items()
        },
    )
    assert torch.equal(layer(alone).flat(), layer(rows).flat()[4:5])


def test_no_rows_give_an_empty_result():
    out = embedding()(batch(0))
    assert out.vectors.shape == (0, 4, 4)
    assert out.flat().shape == (0, 31)
    assert out.first_order.shape == (0,)


def test_gradients_reach_exactly_the_rows_that_were_read():
    layer, rows = embedding(), batch(3)
    layer(rows).flat().sum().backward()
    for name in ("user", "hour", "tags", "history"):
        first = sum(SIZES[other] for other in ORDER[4][: ORDER[4].index(name)])
        grad = layer.tables["size_4"].weight.grad[first : first + SIZES[name]]
        read = sorted({index for n in range(3) for index in ids_of(rows, name, n)})
        assert grad.abs().sum(1).nonzero().flatten().tolist() == read


def test_gradients_by_rows_hold_the_same_values_as_dense_ones():
    layer, twin = embedding(), embedding()
    names = ["weight", "first_order"]
    given = {f"tables.size_4.{name}": RowGradient() for name in names}
    set_row_gradients(layer, {**given, "tables.size_3.other": RowGradient()})
    for one in (layer, twin):
        out = one(batch(6))
        (out.flat().square().sum() + out.first_order.square().sum()).backward()
    for name, gradient in zip(names, given.values(), strict=True):
        own, dense = (getattr(one.tables["size_4"], name).grad for one in (layer, twin))
        touched, values = gradient.get()
        assert own is None
        torch.testing.assert_close(touched.sums(values), dense[touched.rows])
        assert len(touched.rows) == (dense != 0).any(1).sum()
    torch.testing.assert_close(
        layer.tables["size_3"].weight.grad, twin.tables["size_3"].weight.grad
    )


def test_gradients_are_dense_again_where_no_place_by_rows_is_given():
    layer, gradient = embedding(), RowGradient()
    set_row_gradients(layer, {"tables.size_4.weight": gradient})
    with torch.no_grad():  # scoring leaves nothing behind
        layer(batch(6))
    set_row_gradients(layer, {})
    layer(batch(6)).flat().sum().backward()
    assert gradient.get() is None
    assert layer.tables["size_4"].weight.grad is not None


def test_what_does_not_train_is_not_filled_either():
    layer = Embedding(Schema(fields=(Field(name="user", size=4),)), size=2).requires_grad_(False)
    before = layer.tables["size_2"].weight.clone()
    layer.fill_unknown()
    assert torch.equal(layer.tables["size_2"].weight, before)


def test_names_of_parameters_are_simple_globs():
    assert [name for name, _ in embedding().named_parameters()] == [
        "numbers_first_order",
        "tables.size_4.weight",
        "tables.size_4.first_order",
        "tables.size_3.weight",
        "tables.size_3.first_order",
        "tables.size_5_frozen.first_order",
    ]


def test_a_frozen_table_holds_the_given_vectors_and_is_no_parameter():
    layer = embedding()
    table = layer.tables["size_5_frozen"]
    assert torch.equal(table.weight, torch.cat([pretrained()["item"], pretrained()["seen"]]))
    assert "weight" not in dict(table.named_parameters())
    assert "tables.size_5_frozen.weight" in layer.state_dict()
    assert layer.frozen() == [table.weight]


def test_a_trained_pretrained_table_starts_from_the_given_vectors():
    field = Field(name="item", size=9, pretrained="ready.parquet")
    layer = Embedding(
        Schema(fields=(Field(name="user", size=3), field)),
        size=4,
        pretrained={"item": pretrained()["item"]},
    )
    assert torch.equal(layer.tables["size_5"].weight, pretrained()["item"])
    assert layer.tables["size_5"].weight.requires_grad


def test_without_a_linear_term_there_is_no_parameter_for_it():
    layer = embedding(first_order=False)
    assert not any("first_order" in name for name, _ in layer.named_parameters())
    assert layer(batch(3)).first_order.tolist() == [0.0] * 3


def test_a_fresh_layer_has_normal_vectors_of_the_given_std_and_a_zero_linear_term():
    field = Field(name="user", size=20_000)
    layer = Embedding(
        Schema(fields=(field,)),
        size=4,
        std=0.03,
        first_order=True,
        generator=torch.Generator().manual_seed(0),
    )
    table = layer.tables["size_4"]
    assert table.weight.std().item() == pytest.approx(0.03, rel=0.02)
    assert not table.first_order.any()


def test_dropout_drops_elements_of_vectors_and_numbers_but_not_the_linear_term():
    layer, rows = embedding(dropout=0.5), batch(200)
    dropped, whole = layer(rows), layer.eval()(rows)
    for name in ("vectors", "numbers"):
        before, after = getattr(whole, name), getattr(dropped, name)
        kept = after != 0
        assert 0.3 < kept[before != 0].float().mean() < 0.7
        torch.testing.assert_close(after[kept], 2 * before[kept])
    assert torch.equal(dropped.first_order, whole.first_order)


def test_only_numbers_is_a_valid_input():
    layer = Embedding(Schema(fields=(Field(name="age", kind="numerical"),)), size=4)
    numbers = torch.randn(3, 1)
    out = layer(Batch(torch.empty(3, 0, dtype=torch.int32), numbers, torch.arange(3)))
    assert torch.equal(out.flat(), numbers)
    assert out.vectors.shape == (3, 0, 4)


def test_numbers_take_the_type_of_the_tables():
    assert embedding().double()(batch(3)).flat().dtype == torch.float64


def unknown_schema() -> Schema:
    return Schema(
        fields=(
            Field(name="user", size=4, unknown_rows=0),
            Field(name="tags", kind="sequence", size=3, unknown_rows=2),
            Field(name="item", size=5, unknown_rows=0, pretrained="a", trainable=False),
            Field(name="hour", size=3, unknown_rows=0),
            Field(name="none", size=1, unknown_rows=0),
        )
    )


def test_untrained_unknown_rows_become_the_mean_of_their_field_and_nothing_else_changes():
    ready = {"item": torch.randn(5, 2)}
    layer = Embedding(unknown_schema(), size=2, first_order=True, pretrained=ready)
    # fields in the tables: user, hour, none, tags (first rows 0, 4, 7, 8); item has its own
    table, frozen = layer.tables["size_2"], layer.tables["size_2_frozen"]
    with torch.no_grad():
        table.weight.copy_(torch.arange(22.0).view(11, 2) ** 2)
        table.first_order.copy_(torch.arange(11.0).view(11, 1) ** 2)
        frozen.first_order.copy_(torch.tensor([[9.0], [1.0], [2.0], [3.0], [4.0]]))
    expected = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for name in ("weight", "first_order"):
        full = expected[f"tables.size_2.{name}"]
        full[0] = (full[1] + full[2] + full[3]) / 3
        full[4] = (full[5] + full[6]) / 2
    expected["tables.size_2_frozen.first_order"][0] = 2.5
    for _ in range(2):  # calling it again changes nothing
        layer.fill_unknown()
        for name, tensor in layer.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=0)


def test_an_unfitted_schema_is_refused():
    with pytest.raises(UsageError, match="not fitted"):
        Embedding(Schema(fields=(Field(name="user"),)), size=4)


def test_a_schema_without_fields_is_refused():
    with pytest.raises(ConfigError, match="at least one input"):
        Embedding(Schema(fields=()), size=4)


def test_all_problems_with_pretrained_vectors_are_told_at_once():
    given = {"item": torch.randn(9, 5), "user": torch.randn(11, 4)}
    wanted = schema().model_copy(
        update={"fields": (*schema().fields, Field(name="x", size=3, pretrained="x.csv"))}
    )
    with pytest.raises(ConfigError) as error:
        Embedding(wanted, size=4, pretrained=given | {"x": torch.randn(4, 2)})
    assert set(error.value.problems) == {
        "pretrained vectors were given for 'user', which asks for none",
        "field 'seen' needs the vectors of 'ready.parquet'",
        "field 'x' needs pretrained vectors of shape (3, 2), not (4, 2)",
    }


def test_a_stated_width_that_the_vectors_do_not_have_is_refused():
    field = Field(name="item", size=9, pretrained="a", embedding_size=6)
    with pytest.raises(ConfigError, match=r"shape \(9, 6\), not \(9, 5\)"):
        Embedding(Schema(fields=(field,)), size=4, pretrained={"item": torch.randn(9, 5)})
