"""Batches against brute force: every row with everything that belongs to it, grouped by domain."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from loractr.batch import EVERY, Routing
from loractr.data.loader import collate, iterate
from loractr.data.rows import Rows
from loractr.schema import Division, Field, Schema

N = 53
SCHEMA = Schema(
    fields=(
        Field(name="user", size=9),
        Field(name="item", size=8),
        Field(name="age", kind="numerical"),
        Field(name="tags", kind="sequence", size=6),
        Field(name="words", kind="sequence", size=30),
    ),
    divisions=(
        Division(name="tab", column="tab", domains=("home", "feed", "kids")),
        Division(name="hour", column="hour", domains=("day", "night")),
        Division(name="age", column="age", domains=("young", "middle", "old", "oldest")),
    ),
)
SIZES = [3, 2, 4]


def bags(rng, most, values):
    lengths = rng.integers(0, most, N)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return rng.integers(0, values, offsets[-1]).astype(np.int32), offsets


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return Rows(
        ids=rng.integers(0, 8, (N, 2)).astype(np.int32),
        numbers=rng.normal(size=(N, 1)).astype(np.float32),
        domains=np.stack([rng.integers(-1, size, N) for size in SIZES], axis=1).astype(np.int32),
        row=rng.permutation(N) * 3 + 100,
        label=rng.integers(0, 2, N).astype(np.float32),
        weight=rng.random(N, dtype=np.float32),
        sequences={"tags": bags(rng, 4, 6), "words": bags(rng, 9, 30)},
    )


def place(rows, source_row):
    return int(np.flatnonzero(rows.row == source_row)[0])


def all_of(rows, **options):
    return list(iterate(rows, SCHEMA, **options))


def bag(batch, name, n):
    start, stop = batch.sequences[name].offsets[n : n + 2].tolist()
    return batch.sequences[name].values[start:stop].tolist()


@pytest.mark.parametrize("divisions", [(), (0,), (1,), (0, 1), (2, 0, 1)])
@pytest.mark.parametrize("batch_size", [1, 10, N, 999])
def test_a_row_brings_all_that_belongs_to_it(rows, divisions, batch_size):
    seen = []
    for batch in all_of(rows, batch_size=batch_size, routing=Routing(divisions, mixed=True)):
        for n, source_row in enumerate(batch.row.tolist()):
            at = place(rows, source_row)
            assert batch.ids[n].tolist() == rows.ids[at].tolist()
            assert batch.numbers[n].tolist() == rows.numbers[at].tolist()
            assert batch.label[n] == rows.label[at]
            assert batch.weight[n] == rows.weight[at]
            for name, (values, offsets) in rows.sequences.items():
                assert bag(batch, name, n) == values[offsets[at] : offsets[at + 1]].tolist()
            experts = [groups.expert[n].item() for groups in batch.route.divisions]
            assert experts == rows.domains[at, list(divisions)].tolist()
            seen.append(source_row)
    assert sorted(seen) == sorted(rows.row)


@pytest.mark.parametrize("divisions", [(0,), (1,), (0, 1), (2, 0, 1)])
def test_every_division_groups_its_rows_by_expert(rows, divisions):
    for batch in all_of(rows, batch_size=20, routing=Routing(divisions, mixed=True)):
        assert len(batch.route.divisions) == len(divisions)
        for groups, division in zip(batch.route.divisions, divisions, strict=True):
            order = range(len(batch)) if groups.order is None else groups.order.tolist()
            assert sorted(order) == list(range(len(batch)))
            edges = groups.offsets.tolist()
            assert len(edges) == SIZES[division] + 2
            for segment in range(SIZES[division] + 1):
                members = list(order)[edges[segment] : edges[segment + 1]]
                assert {groups.expert[n].item() for n in members} <= {segment - 1}
            assert edges[-1] == len(batch)


@pytest.mark.parametrize("divisions", [(0,), (1, 0)])
def test_rows_stand_grouped_by_the_first_division_and_keep_their_order_within(rows, divisions):
    """So the kernel of the first division reads spans, and needs no copy of the rows in order."""
    (batch,) = all_of(rows, batch_size=N, routing=Routing(divisions, mixed=True))
    first = batch.route.divisions[0]
    assert first.order is None
    assert first.expert.tolist() == sorted(rows.domains[:, divisions[0]])
    cell = rows.domains[:, list(divisions)].tolist()
    expected = sorted(range(N), key=lambda n: (cell[n], n))
    assert batch.row.tolist() == rows.row[expected].tolist()


@pytest.mark.parametrize("divisions", [(0, 1), (2, 0, 1)])
def test_a_cell_is_one_combination_of_domains(rows, divisions):
    for batch in all_of(rows, batch_size=30, routing=Routing(divisions, mixed=True)):
        cell = batch.route.cell
        assert cell.order is None
        combinations = {}
        for n in range(len(batch)):
            combination = tuple(groups.expert[n].item() for groups in batch.route.divisions)
            combinations.setdefault(cell.expert[n].item(), set()).add(combination)
        assert all(len(found) == 1 for found in combinations.values())
        found = [combination for (combination,) in combinations.values()]
        assert len(set(found)) == len(found)
        everything = int(np.prod([SIZES[d] + 1 for d in divisions])) - 1
        assert cell.offsets.shape == (everything + 2,)
        assert all(-1 <= number < everything for number in combinations)
        counts = np.bincount(cell.expert.numpy() + 1, minlength=everything + 1)
        assert cell.offsets.tolist() == [0, *np.cumsum(counts)]


def test_only_rows_that_are_unseen_everywhere_have_no_cell(rows):
    (batch,) = all_of(rows, batch_size=N, routing=Routing((0, 1), mixed=True))
    experts = torch.stack([groups.expert for groups in batch.route.divisions], 1)
    assert (batch.route.cell.expert == -1).tolist() == (experts == -1).all(1).tolist()
    assert (batch.route.cell.expert == -1).any()


def test_without_mixers_one_division_acts_and_there_are_no_cells(rows):
    (batch,) = all_of(rows, batch_size=N, routing=Routing((0, 1), only=1))
    first, second = batch.route.divisions
    assert first is None
    assert batch.route.cell is None
    at = [place(rows, row) for row in batch.row.tolist()]
    assert second.expert.tolist() == rows.domains[at, 1].tolist()
    assert batch.route.acting() == (1, second)


def test_the_cells_of_one_division_are_its_domains(rows):
    (batch,) = all_of(rows, batch_size=N, routing=Routing((0,), mixed=True))
    assert batch.route.cell is batch.route.divisions[0]


def test_every_is_one_domain_of_all_rows(rows):
    (batch,) = all_of(rows, batch_size=N, routing=Routing((EVERY,)))
    (groups,) = batch.route.divisions
    assert groups.expert.tolist() == [0] * len(rows)
    assert groups.offsets.tolist() == [0, 0, len(rows)]


def test_no_division_needs_no_route(rows):
    (batch,) = all_of(rows, batch_size=N)
    assert batch.route.divisions == ()
    assert batch.row.tolist() == rows.row.tolist()


def test_the_number_of_experts_does_not_depend_on_the_batch(rows):
    """Offsets have one shape for every batch, so one graph serves all."""
    shapes = {
        tuple(groups.offsets.shape)
        for batch in all_of(rows, batch_size=2, routing=Routing((2,), mixed=True))
        for groups in batch.route.divisions
    }
    assert shapes == {(SIZES[2] + 2,)}


def test_rows_are_read_in_the_order_asked_for(rows):
    order = np.random.default_rng(1).permutation(N)[:40]
    found = [batch.row.tolist() for batch in all_of(rows, batch_size=15, order=order)]
    assert found == [rows.row[order[k : k + 15]].tolist() for k in (0, 15, 30)]


def test_a_row_may_come_more_than_once(rows):
    batch = collate(rows, np.array([4, 4, 9, 4]), Routing((0,)), SIZES[:1])
    expected = sorted([rows.row[4]] * 3 + [rows.row[9]])
    assert sorted(batch.row.tolist()) == expected


def test_types_are_those_that_the_model_reads(rows):
    (batch,) = all_of(rows, batch_size=N, routing=Routing((0,), mixed=True))
    assert (batch.ids.dtype, batch.row.dtype) == (torch.int32, torch.int64)
    assert {batch.numbers.dtype, batch.label.dtype, batch.weight.dtype} == {torch.float32}
    assert {g.expert.dtype for g in batch.route.divisions} == {torch.int64}
    assert batch.sequences["tags"].values.dtype == torch.int32
    assert batch.sequences["tags"].offsets.dtype == torch.int64


def test_rows_without_label_weight_and_sequences_make_batches_without(rows):
    bare = replace(rows, label=None, weight=None, sequences={})
    (batch,) = all_of(bare, batch_size=N, routing=Routing((0,), mixed=True))
    assert (batch.label, batch.weight, batch.sequences) == (None, None, {})


def test_no_rows_make_no_batch(rows):
    assert all_of(rows.take(np.arange(0)), batch_size=4, routing=Routing((0, 1), mixed=True)) == []
    empty = collate(rows, np.arange(0), Routing((0, 1), mixed=True), SIZES[:2])
    assert len(empty) == 0
    assert empty.route.cell.offsets.tolist() == [0] * 13
    assert empty.sequences["tags"].offsets.tolist() == [0]


def test_memory_mapped_rows_make_the_same_batches_and_stay_untouched(rows, tmp_path):
    def mapped(name, column):
        np.save(tmp_path / f"{name}.npy", column)
        return np.load(tmp_path / f"{name}.npy", mmap_mode="r")

    names = ("ids", "numbers", "domains", "row", "label", "weight")
    on_disk = replace(
        rows,
        **{name: mapped(name, getattr(rows, name)) for name in names},
        sequences={
            name: (mapped(f"{name}.values", values), mapped(f"{name}.offsets", offsets))
            for name, (values, offsets) in rows.sequences.items()
        },
    )
    order = np.random.default_rng(1).permutation(N)
    options = {"batch_size": 20, "routing": Routing((0, 1), mixed=True), "order": order}
    for there, here in zip(all_of(on_disk, **options), all_of(rows, **options), strict=True):
        assert torch.equal(there.ids, here.ids)
        assert torch.equal(there.row, here.row)
        assert torch.equal(there.route.cell.offsets, here.route.cell.offsets)
        for name in rows.sequences:
            assert torch.equal(there.sequences[name].values, here.sequences[name].values)
        there.numbers.add_(1.0)  # a batch is the loop's own: writing into it never reaches the file
    assert (np.load(tmp_path / "numbers.npy") == rows.numbers).all()
