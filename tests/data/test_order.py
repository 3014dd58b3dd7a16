"""Orders of an epoch: what each must cover, and that they are functions of (rows, seed) alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loractr.data import order as module
from loractr.data.order import BlockOrder, balanced, clustered, domain_sequential, shuffled

DOMAINS = np.repeat([0, 1, 2, -1], [50, 7, 20, 3]).astype(np.int32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 rows, so that a few dozen rows have several."""
    monkeypatch.setattr(module, "BLOCK", 8)


def batches(epoch):
    return [epoch[number] for number in range(len(epoch))]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(80, 7), (80, 8), (80, 80), (80, 1000), (1, 7)])
def test_an_epoch_has_every_row_once_in_full_batches(small_blocks, rows, size, on_disk):
    found = batches(shuffled(rows, size, (3, 0), on_disk=on_disk))
    assert sorted(np.concatenate(found)) == list(range(rows))
    assert len(found) == -(-rows // size)
    assert {len(batch) for batch in found[:-1]} <= {size}
    assert all(batch.dtype == np.int64 for batch in found)


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_seed_alone_decides_the_order(small_blocks, on_disk):
    def order(seed):
        return np.concatenate(batches(shuffled(80, 7, seed, on_disk=on_disk)))

    assert (order((3, 1)) == order((3, 1))).all()
    for other in ((3, 2), (4, 1)):
        assert (order((3, 1)) != order(other)).mean() > 0.5


def test_a_shuffle_has_no_trace_of_the_rows_own_order():
    """Mean place of each tenth of the rows over many seeds, against the middle."""
    places = np.zeros(200)
    for seed in range(200):
        places[shuffled(200, 200, (seed, 0))[0]] += np.arange(200) / 200
    tenths = places.reshape(10, 20).mean(1)  # each the mean of 4,000 draws of U(0, 1): sd 0.0046
    assert np.abs(tenths - 99.5).max() < 4 * 200 * 0.289 / 4000**0.5


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(0, 5), st.data())
def test_reading_anywhere_is_reading_from_the_start(rows, seed, data):
    """A resumed run begins in the middle: what it reads there is what the first one would have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 8)
        sequential = BlockOrder(rows, (seed, 1))
        whole = np.concatenate([sequential[k : k + 1] for k in range(rows)] or [np.zeros(0, int)])
        assert sorted(whole) == list(range(rows))
        order = BlockOrder(rows, (seed, 1))
        for _ in range(5):
            start, stop = data.draw(st.integers(0, rows + 3)), data.draw(st.integers(0, rows + 3))
            assert order[start:stop].tolist() == whole[start:stop].tolist()
        assert order[:].tolist() == whole.tolist()
        assert len(order) == rows


def test_blocks_come_whole_in_random_order_and_shuffled_within(small_blocks):
    """At any moment only one block of the file needs to be in memory."""
    whole = BlockOrder(60, (0, 0))[:]
    runs = np.split(whole // 8, np.flatnonzero(np.diff(whole // 8)) + 1)
    assert len(runs) == 8
    assert sorted(len(run) for run in runs) == [4] + [8] * 7
    assert [run[0] for run in runs] != list(range(8))
    assert any((np.diff(whole[whole // 8 == block]) < 0).any() for block in range(8))


def test_the_natural_temperature_draws_every_row_once():
    found = np.concatenate(batches(balanced(DOMAINS, 9, (0, 0), temperature=1.0)))
    assert sorted(found) == list(range(len(DOMAINS)))


@pytest.mark.parametrize("temperature", [1.5, 2.0, 5.0])
def test_each_domain_gets_the_share_that_the_temperature_gives_it(temperature):
    counts = {-1: 3, 0: 50, 1: 7, 2: 20}
    total = sum(n ** (1 / temperature) for n in counts.values())
    found = np.concatenate(batches(balanced(DOMAINS, 9, (0, 0), temperature=temperature)))
    assert len(found) == len(DOMAINS)
    for domain, count in counts.items():
        expected = len(DOMAINS) * count ** (1 / temperature) / total
        drawn = (DOMAINS[found] == domain).sum()
        assert abs(drawn - expected) < 1, domain


def test_a_high_temperature_gives_all_domains_the_same_share():
    found = np.concatenate(batches(balanced(DOMAINS, 9, (0, 0), temperature=1e9)))
    assert np.bincount(DOMAINS[found] + 1).tolist() == [20, 20, 20, 20]


def test_within_a_domain_no_row_comes_twice_before_all_have_come_once():
    found = np.concatenate(batches(balanced(DOMAINS, 9, (0, 0), temperature=1e9)))
    times = np.bincount(found, minlength=len(DOMAINS))
    for domain, least, most in ((0, 0, 1), (1, 2, 3), (2, 1, 1), (-1, 6, 7)):
        mine = times[domain == DOMAINS]
        assert (mine.min(), mine.max()) == (least, most)


def test_balanced_batches_mix_the_domains():
    found = batches(balanced(DOMAINS, 40, (0, 0), temperature=1e9))
    assert [len(batch) for batch in found] == [40, 40]
    assert all(len(set(DOMAINS[batch])) == 4 for batch in found)


def test_the_authors_order_has_batches_of_one_domain_only():
    found = batches(domain_sequential(DOMAINS, 9, (0, 0)))
    assert sorted(np.concatenate(found)) == list(range(len(DOMAINS)))
    domains = [set(DOMAINS[batch].tolist()) for batch in found]
    assert all(len(one) == 1 for one in domains)
    visited = [one.pop() for one in domains]
    assert len(np.flatnonzero(np.diff(visited))) == 3  # each domain once, in one run
    sizes = {d: [len(b) for b, v in zip(found, visited, strict=True) if v == d] for d in (-1, 0)}
    assert sizes == {-1: [3], 0: [9, 9, 9, 9, 9, 5]}


def test_the_authors_order_visits_the_domains_in_another_order_each_epoch():
    firsts = {DOMAINS[domain_sequential(DOMAINS, 9, (0, n))[0][0]].item() for n in range(30)}
    assert firsts == {-1, 0, 1, 2}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(-1, 9), max_size=120),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(0, 3),
)
def test_clustered_batches_have_every_row_once_in_runs_of_one_domain(ids, size, together, seed):
    domains = np.array(ids, np.int32)
    order = np.concatenate([*batches(clustered(domains, size, (seed,), together=together)), [0]])
    order = order[:-1].astype(int)
    assert sorted(order) == list(range(len(ids)))
    run = max(1, size // together)
    places = np.flatnonzero(np.diff(domains[order])) + 1  # where another domain begins
    lengths = np.diff([0, *places, len(ids)])
    whole = -(-np.bincount(domains + 1, minlength=11) // run).sum()  # runs, if none met its like
    assert len(places) + 1 <= max(whole, 1)
    assert (lengths % run != 0).sum() <= 11 * (1 + (lengths > run).sum())


def test_a_clustered_batch_has_few_of_many_domains():
    domains = np.random.default_rng(0).integers(0, 300, 60_000).astype(np.int32)
    found = batches(clustered(domains, 2048, (0, 0), together=16))
    assert {len(batch) for batch in found[:-1]} == {2048}
    counts = [len(set(domains[batch])) for batch in found[:-1]]
    # 200 rows a domain make one run of 128 and a shorter one: two runs where one would do
    assert max(counts) <= 32
    mixed = [len(set(domains[batch])) for batch in batches(shuffled(60_000, 2048, (0, 0)))]
    assert min(mixed[:-1]) > 290


def test_clustered_rows_of_a_domain_are_shuffled():
    domains = np.zeros(1000, np.int32)
    order = np.concatenate(batches(clustered(domains, 100, (1, 2), together=4)))
    assert np.abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


@pytest.mark.parametrize("make", [balanced, domain_sequential, clustered])
def test_orders_by_domain_are_functions_of_the_seed(make):
    options = {balanced: {"temperature": 3.0}, clustered: {"together": 2}}.get(make, {})

    def order(seed):
        return np.concatenate(batches(make(DOMAINS, 9, seed, **options)))

    assert (order((3, 1)) == order((3, 1))).all()
    assert (order((3, 1)) != order((3, 2))).any()
