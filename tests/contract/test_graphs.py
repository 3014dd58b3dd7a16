"""Every model is one graph, for batches of any size: compiled, exported, and as an ONNX file."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from torch.export import Dim, ShapesCollection
from torch.utils._pytree import tree_leaves

from contract.world import ADAPTERS, ROWS, batch_of, config_of, moved, moved_of, rows_of
from loractr.adapters.fusion import FusedLinear, Fusion
from loractr.adapters.low_rank import LowRankLinear
from loractr.backbones import BACKBONES
from loractr.batch import Bag, Batch, Routing
from loractr.config import METHODS
from loractr.layers.embedding import Embedding
from loractr.layers.linear import Linear
from loractr.schema import Field, Schema

KINDS = ("mlora", "moe_mlora", "multilora")
"""One method of each kind: a hard route, a soft one, experts of several divisions fused."""
CHOSEN = ("mlp", "deepfm")
"""The papers' tower by itself, and a backbone with all that can stand beside one."""
SIZES = (0, 1, 3, ROWS, 101)

torch_warns_of_itself = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:.*script_method:DeprecationWarning"
)
"""Of its own functions, which the ONNX exporter and inductor call."""


def case(method, backbone):
    """Quick are both kinds of route on every backbone, and every method on one."""
    quick = backbone == "mlp" or method in ("mlora", "moe_mlora")
    return pytest.param(method, backbone, marks=() if quick else pytest.mark.slow)


CASES = [
    case(method, backbone)
    for method in METHODS
    for backbone in (BACKBONES if method in ADAPTERS else CHOSEN)
]
"""Every adapter on every backbone, every baseline on two."""


def narrow(method, backbone):
    """With one hidden layer: a second one is traced like the first, in as much time again."""
    return moved(method, backbone, batch_norm=True, hidden_sizes=[5])


def scored(model, count, seed=5):
    """A batch as it comes to a finished model: all domains mixed, some unseen, and no labels."""
    return batch_of(model, replace(rows_of(count, seed=seed), label=None))


def compiled(model):
    """The model as one graph, and the list in which every graph appears that is made of it."""
    torch.compiler.reset()
    graphs = []

    def run_as_it_is(graph, inputs):
        graphs.append(graph)
        return graph

    return torch.compile(model, fullgraph=True, backend=run_as_it_is, dynamic=True), graphs


def assert_one_graph(model):
    graph, graphs = compiled(model)
    for count in (ROWS, 17):
        batch = scored(model, count)
        with torch.no_grad():
            torch.testing.assert_close(graph(batch), model(batch), atol=1e-10, rtol=0)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("method", "backbone"), CASES)
def test_it_compiles_to_one_graph(method, backbone):
    assert_one_graph(narrow(method, backbone))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "backbone"), [("mlora", "autoint"), ("multilora", "fibinet")])
def test_with_experts_beside_every_layer_it_compiles_to_one_graph(method, backbone):
    """Those that see a row as several vectors too: attention's, and the products of pairs."""
    config = config_of(method, backbone, batch_norm=True, hidden_sizes=[5])
    everywhere = config.method.model_copy(update={"targets": ("*",)})
    model = moved_of(config.model_copy(update={"method": everywhere}))
    kinds = [type(layer) for layer in model.backbone.modules()]
    adapted = kinds.count(LowRankLinear) + kinds.count(FusedLinear)
    assert adapted > 1  # the tower's one layer
    inside = 2 * kinds.count(Fusion)  # queries and keys
    assert kinds.count(Linear) == adapted + inside  # no layer is left without experts
    assert_one_graph(model)


@pytest.mark.parametrize("place", [0, 1])
def test_the_experts_of_one_division_alone_compile_to_one_graph(place):
    """The route has None in the place of the division that does not act."""
    model = narrow("multilora", "mlp")
    model.routing = replace(model.routing, mixed=False, only=place)
    assert_one_graph(model)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mlora", "moe_mlora", "multilora", "star", "ple"])
def test_without_a_division_it_compiles_to_one_graph(method):
    """The backbone alone; in a baseline, the average domain."""
    model = narrow(method, "mlp")
    model.routing = Routing()
    assert_one_graph(model)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", CHOSEN)
@pytest.mark.parametrize("method", METHODS)
def test_in_training_it_compiles_to_one_graph(method, backbone):
    """Scores, gradients, and what the norms remember."""
    model = narrow(method, backbone).train()
    eager = copy.deepcopy(model)
    graph, graphs = compiled(model)
    for count in (ROWS, 17):
        batch = batch_of(model, rows_of(count))
        found, expected = graph(batch), eager(batch)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        found.square().sum().backward()
        expected.square().sum().backward()
    assert len(graphs) == 1
    for name, parameter in eager.named_parameters():
        other = model.get_parameter(name).grad
        if parameter.grad is None:
            assert other is None or not other.any(), name
        else:
            torch.testing.assert_close(other, parameter.grad, atol=1e-8, rtol=1e-10)
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), buffer, atol=1e-10, rtol=0)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """An empty cache of compiled kernels, so that the user's own does not decide what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
@torch_warns_of_itself
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles its kernels with g++")
@pytest.mark.parametrize("method", KINDS)
def test_kernels_of_inductor_score_alike(method):
    torch.compiler.reset()
    model = narrow(method, "deepfm").float()
    graph = torch.compile(model, fullgraph=True, dynamic=True)
    for count in (ROWS, 17):
        batch = scored(model, count)
        with torch.no_grad():
            torch.testing.assert_close(graph(batch), model(batch), atol=1e-5, rtol=1e-5)


def exported(model):
    """The model for any number of rows, none included, and any number of ids in its sequences."""
    batch, rows = scored(model, ROWS), Dim("rows", min=0)
    shapes = ShapesCollection()
    for leaf in tree_leaves(batch):
        if len(leaf) == ROWS:
            shapes[leaf] = {0: rows}
    for name, bag in batch.sequences.items():
        shapes[bag.values] = {0: Dim(name, min=0)}
        shapes[bag.offsets] = {0: rows + 1}
    return torch.export.export(model, (batch,), dynamic_shapes=shapes, strict=True)


def assert_exports(model):
    program = exported(model).module()
    for count in SIZES:
        batch = scored(model, count)
        torch.testing.assert_close(program(batch), model(batch), atol=1e-10, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", KINDS)
def test_adapters_export_strictly_for_batches_of_any_size(method, backbone):
    assert_exports(narrow(method, backbone))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS.keys() - ADAPTERS))
def test_baselines_export_strictly_for_batches_of_any_size(method):
    assert_exports(moved(method, "mlp", batch_norm=True))


def test_an_exported_embedding_pools_sequences_by_the_formula():
    """The mean of a bag's vectors, 0 without any: in a graph it is not torch's own operator."""
    fields = tuple(
        Field(name=n, kind="sequence", size=6, unknown_rows=1) for n in ("seen", "liked")
    )
    embedding = Embedding(Schema(fields=fields), size=3, std=1.0).double()
    bags = {
        "seen": [[1, 1, 4], [], [2], [0, 5, 3, 3, 3]],
        "liked": [[], [], [5, 2], []],
    }
    table = embedding.tables["size_3"].weight
    expected = torch.zeros(4, 2, 3, dtype=torch.double)
    for place, ids_of_rows in enumerate(bags.values()):
        for row, ids in enumerate(ids_of_rows):
            for one in ids:
                expected[row, place] += table[6 * place + one].detach() / len(ids)
    batch, rows = batch_of_bags(bags), Dim("rows", min=0)
    shapes = ShapesCollection()
    shapes[batch.ids] = shapes[batch.numbers] = shapes[batch.row] = {0: rows}
    for name, bag in batch.sequences.items():
        shapes[bag.values] = {0: Dim(name, min=0)}
        shapes[bag.offsets] = {0: rows + 1}

    program = torch.export.export(Vectors(embedding), (batch,), dynamic_shapes=shapes, strict=True)
    module = program.module()

    torch.testing.assert_close(module(batch), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(embedding(batch).vectors, expected, atol=1e-14, rtol=0)
    for start, stop in ((0, 1), (1, 2), (2, 2)):
        part = batch_of_bags({name: ids[start:stop] for name, ids in bags.items()})
        torch.testing.assert_close(module(part), expected[start:stop], atol=1e-14, rtol=0)


class Vectors(torch.nn.Module):
    """A graph's output must be tensors, not `Embedded`."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def forward(self, batch):
        return self.embedding(batch).vectors


def batch_of_bags(bags):
    rows = len(bags["seen"])
    return Batch(
        ids=torch.zeros(rows, 0, dtype=torch.int32),
        numbers=torch.zeros(rows, 0),
        row=torch.arange(rows),
        sequences={
            name: Bag(
                torch.tensor([one for row in ids for one in row], dtype=torch.int32),
                torch.tensor([0, *(len(row) for row in ids)]).cumsum(0),
            )
            for name, ids in bags.items()
        },
    )


def assert_onnx_scores_alike(model, path):
    import onnx
    from onnxruntime import InferenceSession

    made = torch.onnx.export(exported(model), dynamo=True, verbose=False)
    made.save(path)
    onnx.checker.check_model(path, full_check=True)
    # A loop over bags takes a hundred times as long as all the rest. Adding up into places of which
    # some come twice is a race in onnxruntime with several threads, microsoft/onnxruntime#23396.
    operators = {node.op_type for node in made.model.graph}
    assert not operators & {"Loop", "Scan", "ScatterND"}
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in made.model.graph.inputs]
    for count in SIZES[1:]:  # onnxruntime has no product of an empty matrix with a vector
        batch = scored(model, count)
        tensors = (leaf.numpy() for leaf in tree_leaves(batch))
        (logits,) = session.run(None, dict(zip(names, tensors, strict=True)))
        expected = model(batch).detach()
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch_warns_of_itself
@pytest.mark.parametrize("backbone", CHOSEN)
@pytest.mark.parametrize("method", KINDS)
def test_onnx_runtime_scores_alike(method, backbone, tmp_path):
    model = moved(method, backbone, batch_norm=True).float()
    assert_onnx_scores_alike(model, tmp_path / "model.onnx")


@pytest.mark.slow
@torch_warns_of_itself
def test_onnx_runtime_keeps_the_same_largest_weights(tmp_path):
    """Of equal ones the first, as the gate says."""
    model = moved("moe_mlora", "mlp", batch_norm=True).float()
    model.front.gate.top_k = 2
    equal = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    model.front.gate.table.data.copy_(equal)
    assert_onnx_scores_alike(model, tmp_path / "model.onnx")
