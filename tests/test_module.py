"""The module of a program against the model it was traced from."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from graphgrow.errors import Refusal, TraceError
from graphgrow.graph import WEIGHTS, ByMode, Graph, Kind, Node, Origin, Record, Ref, TensorType
from graphgrow.module import Outputs, lower
from graphgrow.sizes import parse, symbol
from graphgrow.tracing import trace
from tests.programs import outputs, resized, traced
from tests.zoo import ZOO

NAMES = list(ZOO)
SOME = ["gpt2", "llama", "gemma2", "bert", "t5", "swin", "resnet", "mixtral", "tied_autoencoder", "densenet"]
# Each has a module that is called more than once, or whose parameter another module reads.
FIXED_LENGTH = {"mamba"}


def assert_equal(left, right, tolerance=1e-6):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()), equal_nan=True)


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def backward(module, inputs, seed=0):
    found = outputs(module, inputs, seed)
    loss = torch.stack([out.double().square().mean() for out in found if out.is_floating_point()]).sum()
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("name", NAMES)
def test_is_the_model_in_both_modes(name):
    model, inputs = ZOO[name].build()
    module = traced(name).module()
    for training in (False, True, False):
        model.train(training)
        module.train(training)
        assert_equal(outputs(module, inputs), outputs(model, inputs))
    assert_equal([*module.state_dict().values()], [model.state_dict()[key] for key in module.state_dict()])


@pytest.mark.parametrize("name", NAMES)
def test_trains_as_the_model_does(name):
    """A gradient that is zero in exact arithmetic (of a key's bias, by which softmax does not change) is what rounding
    leaves of terms as large as other gradients."""
    model, inputs = ZOO[name].build()
    module = traced(name).module()
    assert list(gradients(module)) == list(gradients(model))
    assert backward(module.train(), inputs) == pytest.approx(backward(model.train(), inputs), rel=1e-6)
    wanted = gradients(model)
    rounding = 10 * torch.finfo(torch.float32).eps * max(float(g.abs().max()) for g in wanted.values() if g is not None)
    for key, expected in wanted.items():
        found = gradients(module)[key]
        assert (found is None) == (expected is None), key
        if expected is not None:
            atol = 1e-5 * float(expected.abs().max()) + rounding
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_runs_at_other_sizes(name):
    model, _ = ZOO[name].build()
    module = traced(name).module().eval()
    length = None if name in FIXED_LENGTH else 11
    for batch in (1, 3):
        inputs = resized(name, batch, length)
        assert_equal(outputs(module, inputs), outputs(model.eval(), inputs), 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_has_the_names_of_the_model(name):
    model, _ = ZOO[name].build()
    module = traced(name).module()
    expected = model.state_dict()
    assert module.state_dict().keys() == expected.keys()
    assert [key for key, _ in module.named_parameters()] == [key for key, _ in model.named_parameters()]
    assert all(module.state_dict()[key].shape == expected[key].shape for key in expected)
    module.load_state_dict(expected, strict=True)
    model.load_state_dict(module.state_dict(), strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_hierarchy_computes_the_same(name):
    _, inputs = ZOO[name].build()
    program = traced(name)
    flat, tree = program.module(), program.module(hierarchical=True)
    assert list(tree.state_dict()) == list(flat.state_dict())
    for training in (False, True):
        flat.train(training)
        tree.train(training)
        assert same(outputs(flat, inputs), outputs(tree, inputs))


@pytest.mark.parametrize("name", SOME)
def test_copies_keep_ties(name):
    _, inputs = ZOO[name].build()
    module = traced(name).module(hierarchical=name == "bert").eval()
    expected = outputs(module, inputs)
    count = len(list(module.parameters()))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert not other.training
        assert len(list(other.parameters())) == count
        assert not {id(tensor) for tensor in other.parameters()} & {id(tensor) for tensor in module.parameters()}
        assert same(outputs(other, inputs), expected)
    module.double().float()
    assert len(list(module.parameters())) == count


def test_works_without_names_and_with_them():
    model, inputs = ZOO["t5"].build()
    module = traced("t5").module().eval()
    by_name = module(**dict(reversed(inputs.items())))
    by_place = module(*inputs.values())
    assert torch.equal(by_name.logits, by_place["logits"])
    assert list(by_name) == ["logits", "encoder_last_hidden_state"]
    with pytest.raises(AttributeError, match="there are logits"):
        _ = by_name.loss
    model.eval()


class Precise(TorchDispatchMode):
    """Remembers operators that make floating tensors of another type than float64."""

    def __init__(self):
        super().__init__()
        self.others = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64:
                self.others.add(str(func))
        return result


@pytest.mark.parametrize("name", NAMES)
def test_lowers_to_float64_throughout(name):
    program = traced(name)
    tensors = {key: t.double() if t.is_floating_point() else t.clone() for key, t in program.tensors.items()}
    parts = (program.graph, tensors, program.kinds, program.aliases, program.dtype)
    module = lower(*parts, precision=torch.float64).eval()
    inputs = program.example(seed=3)
    wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    with Precise() as mode:
        found = outputs(module, wide)
    assert not mode.others
    expected = outputs(program.module().eval(), inputs)
    assert_equal(found, [out.double() if out.is_floating_point() else out for out in expected], 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "swin"])
@pytest.mark.parametrize("hierarchical", [False, True])
def test_compiles_and_exports_again(name, hierarchical):
    _, inputs = ZOO[name].build()
    module = traced(name).module(hierarchical)
    compiled: Any = torch.compile(module, backend="eager", fullgraph=True)
    for training in (True, False):
        module.train(training)
        assert same(outputs(compiled, inputs), outputs(module, inputs))
    assert isinstance(compiled(**inputs), Outputs)
    dynamic = {key: {0: torch.export.Dim.AUTO} for key in inputs}
    exported = torch.export.export(module, (), dict(inputs), dynamic_shapes=dynamic, strict=False)
    assert not exported.graph_signature.buffers_to_mutate
    other = resized(name, 3, 7)
    assert isinstance(exported.module()(**other), Outputs)
    assert_equal(outputs(exported.module(), other), outputs(module, other))


def test_submodules_have_their_own_mode():
    _, inputs = ZOO["gpt2"].build()
    module: Any = traced("gpt2").module(hierarchical=True)
    blocks = module.transformer.h
    assert len(blocks) == 2
    assert [id(block) for block in blocks] == [id(blocks[0]), id(blocks[-1])]
    with pytest.raises(IndexError, match="no block 2"):
        _ = blocks[2]
    module.eval()
    blocks[1].mlp.train()
    assert not torch.equal(outputs(module, inputs, 1)[0], outputs(module, inputs, 2)[0])
    blocks[1].eval()
    assert torch.equal(outputs(module, inputs, 1)[0], outputs(module, inputs, 2)[0])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_activation_checkpointing_changes_nothing(name):
    _, inputs = ZOO[name].build()
    program = traced(name)
    plain, saving = (program.module(hierarchical=True).train() for _ in range(2))
    roots = {"gpt2": "transformer.h", "llama": "model.layers", "bert": "bert.encoder.layer"}
    blocks: Any = saving.get_submodule(roots[name])
    for block in blocks:
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
    for step in range(2):
        assert backward(saving, inputs, step) == backward(plain, inputs, step)
    found = gradients(saving)
    for key, expected in gradients(plain).items():
        assert (found[key] is None) == (expected is None), key
        assert expected is None or same([found[key]], [expected]), key


class Shared(nn.Module):
    """One module called twice, one list whose modules do not follow each other, and a constant."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
        self.ups = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.unused = nn.Linear(3, 2)
        self.offset = torch.arange(6.0)

    def forward(self, x):
        for up, down in zip(self.ups, self.downs, strict=True):
            x = self.layer(x) + down(up(x))
        return {"sum": (x + self.offset, None), "size": x[:, : x.shape[0] // 2 + 1]}


def test_modules_called_twice_and_lists_that_interleave():
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(5, 6)
    program = trace(model, x)
    tree: Any = program.module(hierarchical=True)
    assert list(tree.state_dict()) == list(model.state_dict())
    for module in (program.module(), tree):
        for batch in (5, 2):
            assert_equal(outputs(module, {"x": x[:batch]}), outputs(model, {"x": x[:batch]}))
        assert module(x)["sum"][1] is None
    tree.layer.eval()
    assert torch.equal(tree(x)["sum"][0], tree(x)["sum"][0])


X = TensorType((symbol("batch"), symbol("length"), 4), WEIGHTS)


def small(*nodes, outputs, origins=("x", "x")):
    symbols = {"batch": Origin(origins[0], 0), "length": Origin(origins[1], 1)}
    return Graph((Node("x", "input", (), (), X), *nodes), outputs, symbols)


def test_sizes_are_integer_expressions():
    texts = [
        "2*batch*length - 3",
        "(batch + 1) // 2",
        "max(batch, length)",
        "min(batch, 2)",
        "length % 2 + 1",
        "batch - 1",
    ]
    nodes = [Node(f"n{i}", "aten.zeros.default", ((parse(text),),), (), TensorType((parse(text),), "float32"))
             for i, text in enumerate(texts)]  # fmt: skip
    graph = small(*nodes, outputs=Record(tuple((node.name, Ref(node.name)) for node in nodes)))
    found = lower(graph, {}, {}, {}, "float32")(torch.randn(3, 5, 4))
    assert [tuple(value.shape) for value in found.values()] == [(27,), (2,), (5,), (2,), (2,), (2,)]


def test_new_tensors_are_made_where_the_input_is():
    node = Node("n", "aten.arange.default", (symbol("batch"),), (), TensorType((symbol("batch"),), "int64"))
    like = Node("m", "aten.new_ones.default", (Ref("x"), (2,)), (), TensorType((2,), WEIGHTS))
    module = lower(small(node, like, outputs=(Ref("n"), Ref("m"))), {}, {}, {}, "bfloat16")
    found = module(torch.empty(3, 5, 4, device="meta", dtype=torch.bfloat16))
    assert [(value.device.type, value.dtype) for value in found] == [("meta", torch.int64), ("meta", torch.bfloat16)]


def test_a_size_may_be_read_from_any_node():
    permuted = TensorType((symbol("length"), symbol("batch"), 4), WEIGHTS)
    nodes = [
        Node("p", "aten.permute.default", (Ref("x"), (1, 0, 2)), (), permuted, "a"),
        Node("z", "aten.zeros.default", ((symbol("length"),),), (), TensorType((symbol("length"),), "float32"), "b"),
    ]
    graph = small(*nodes, outputs=(Ref("p"), Ref("z")))
    graph = Graph(graph.nodes, graph.outputs, {"batch": Origin("x", 0), "length": Origin("p", 0)})
    for hierarchical in (False, True):
        module = lower(graph, {}, {}, {}, "float32", hierarchical=hierarchical)
        assert [tuple(out.shape) for out in module(torch.randn(3, 5, 4))] == [(5, 3, 4), (5,)]


def test_mode_picks_values():
    nodes = [
        Node("a", "aten.mul.Tensor", (Ref("x"), ByMode(2.0, 3.0)), (), X),
        Node("b", "by_mode", (Ref("x"), Ref("a")), (), X),
    ]
    module = lower(small(*nodes, outputs=Ref("b")), {}, {}, {}, "float32")
    x = torch.randn(2, 3, 4)
    assert torch.equal(module(x), x)
    assert torch.equal(module.eval()(x), 3 * x)


def test_unknown_operators_are_refused():
    node = Node("a", "aten.no_such_thing.default", (Ref("x"),), (), X)
    with pytest.raises(TraceError, match="no operator of torch"):
        lower(small(node, outputs=Ref("a")), {}, {}, {}, "float32")


def test_kinds_of_tensors():
    kinds = {
        "a.w": Kind("parameter"), "a.frozen": Kind("parameter", trainable=False), "b": Kind("buffer"),
        "hidden": Kind("buffer", persistent=False), "constants.0": Kind("constant"),
    }  # fmt: skip
    tensors = {name: torch.randn(3) for name in kinds}
    module: Any = lower(small(outputs=Ref("x")), tensors, kinds, {"c.w": "a.w"}, "float32")
    assert sorted(module.state_dict()) == ["a.frozen", "a.w", "b", "c.w"]
    assert {name: p.requires_grad for name, p in module.named_parameters()} == {"a.w": True, "a.frozen": False}
    assert module.c.w is module.a.w
    assert module.hidden.data_ptr() == tensors["hidden"].data_ptr()


class Pairs(nn.Module):
    """Complex numbers of the weights' own type, which there are for some types only."""

    turn: Tensor

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.register_buffer("turn", torch.polar(torch.ones(4), torch.arange(4.0)))

    def forward(self, x):
        pairs = torch.view_as_complex(self.drop(self.first(x)).unflatten(-1, (4, 2)))
        pairs = pairs * self.turn + pairs.conj()
        return self.second(torch.view_as_real(pairs).flatten(-2)), pairs


def test_complex_numbers(caplog):
    """In both modes, and in other precisions: 128 bits beside float64, 64 beside float32."""
    torch.manual_seed(0)
    model, inputs = Pairs(), {"x": torch.randn(4, 6)}
    program = trace(model, inputs)
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]  # on types without complex numbers
    module = program.module()
    for training in (False, True):
        assert_equal(outputs(module.train(training), inputs), outputs(model.train(training), inputs))
    for precision, wide in ((torch.float64, torch.complex128), (torch.float32, torch.complex64)):
        tensors = {
            name: tensor.to(wide if tensor.is_complex() else precision) for name, tensor in program.tensors.items()
        }
        lowered = lower(program.graph, tensors, program.kinds, {}, program.dtype, precision=precision).eval()
        found = outputs(lowered, {"x": inputs["x"].to(precision)})
        assert [value.dtype for value in found] == [precision, wide]
    with pytest.raises(Refusal, match="float32 only"):
        program.to("bfloat16")


class Widening(nn.Module):
    """In bfloat16 its second layer gets float32, which fake tensors let pass."""

    table: Tensor

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.ones(8, dtype=torch.complex64))

    def forward(self, x):
        return self.second((self.first(x) * self.table).real)


def test_types_that_do_not_run_are_refused():
    program = trace(Widening(), {"x": torch.randn(4, 6)})
    with pytest.raises(Refusal, match="float32 only"):
        program.to("bfloat16")
