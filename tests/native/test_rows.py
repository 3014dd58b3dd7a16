"""Compiled work on rows of tables against torch's operations."""

import pytest
import torch

from loractr import native
from loractr.layers.lookup import Touched
from loractr.stage import Stage
from loractr.training.expert_adam import ExpertAdam

pytestmark = pytest.mark.usefixtures("kernels")

IDS = {
    "none": [],
    "one": [7],
    "all the same": [3] * 9,
    "repeated": [5, 0, 5, 2, 5, 0, 1023],
    "large": [2**31 - 1, 0, 2**30, 4096, 2**31 - 1, 4095],
    "many": [n * n * 7919 % 5000 for n in range(4000)],
}

SHAPES = {"down": (2, 300), "up": (5, 2), "offset": (5,)}


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_ids_are_grouped_as_a_stable_sort_groups_them(ids, kind):
    found = Touched.of(torch.tensor(ids, dtype=kind), torch.zeros(1, 1))
    places = {row: [n for n, own in enumerate(ids) if own == row] for row in sorted(set(ids))}
    assert found.rows.tolist() == list(places)
    assert found.order.tolist() == [n for own in places.values() for n in own]
    starts = torch.tensor([0, *map(len, places.values())]).cumsum(0)
    assert found.edges.tolist() == starts.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 4, 5, 16, 40, 300])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_both_kinds_of_kernels_group_and_sum_alike(ids, width, dtype):
    ids, values = torch.tensor(ids, dtype=torch.int64), normal(len(ids), width, dtype=dtype)
    found = []
    for kind in ("native", "torch"):
        with native.use(kind):
            touched = Touched.of(ids, values)
            found.append([touched.rows, touched.order, touched.edges, touched.sums(values)])
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(
            ours, torchs, atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=0
        )


def test_sums_are_the_same_bits_for_any_number_of_threads():
    ids, values = torch.arange(20000) * 7919 % 9000, normal(20000, 16)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(Touched.of(ids, values).sums(values))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1, "clip_norm": 0.5, "ema": 0.9},
        {"weight_decay": 0.1, "decoupled": True, "warmup": 1.0, "decay": "cosine"},
    ],
    ids=["plain", "coupled", "decoupled"],
)
def test_experts_are_moved_alike(settings, dtype):
    stage = Stage(name="s", learning_rate=0.01, epochs=3, **settings)
    found = []
    for kind in ("native", "torch"):
        random = torch.Generator().manual_seed(3)

        def numbers(*shape, random=random):
            return torch.randn(*shape, generator=random, dtype=torch.double).to(dtype)

        trained = {name: torch.nn.Parameter(numbers(7, *rest)) for name, rest in SHAPES.items()}
        adam = ExpertAdam(stage, trained, 7)
        with native.use(kind):
            for step in range(30):
                experts = torch.arange(7)[torch.rand(7, generator=random) < 0.5]
                for parameter in trained.values():
                    parameter.grad = numbers(*parameter.shape)
                adam.step(experts, torch.full((len(experts),), step / 10, dtype=torch.double))
        found.append([*trained.values(), *(adam.average or {}).values()])
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours.detach(), torchs.detach(), atol=tolerance, rtol=tolerance)
