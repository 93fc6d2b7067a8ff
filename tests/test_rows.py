"""Every row of the prover against numbers: random graphs around each operator, grown by random facts; whatever the rows
derive must hold of the values, cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
import torch

from graphgrow import ops
from graphgrow.graph import WEIGHTS, Dtype, Ref
from tests.oracle import Grower, Maker

torch.set_num_threads(1)
GRAPHS, GROWTHS = 6, 6

Build = Callable[["Calls"], object]


class Calls(Maker):
    """Random operands: parameters, and what a few operators make of them."""

    def sizes(self, rank: int) -> tuple[int, ...]:
        return tuple(self.pick(2, 2, 3, 3, 4) for _ in range(rank))

    def x(self, rank: int | None = None, *shape: int) -> Ref:
        """A tensor of some rank or shape with facts of any kind."""
        sizes = shape or self.sizes(rank if rank is not None else self.pick(1, 2, 2, 3))
        found = self._sized(sizes)
        for _ in range(self.pick(0, 0, 1, 1, 2)):
            found = self.pick(*PRELUDES)(self, found)
        return found

    def _sized(self, sizes: tuple[int, ...]) -> Ref:
        """A parameter of this shape; or one that was larger, joined or spread to it."""
        how = self.random.random()
        if how < 0.6 or not sizes:
            return self.parameter(*sizes)
        dim = self.random.randrange(len(sizes))
        before, size, after = sizes[:dim], sizes[dim], sizes[dim + 1 :]
        if how < 0.7:
            return self.call("expand", self.parameter(*before, 1, *after), sizes)
        if how < 0.8 and size > 2:
            first, second = self.parameter(*before, 1, *after), self.parameter(*before, size - 1, *after)
            return self.call("cat", (first, second), dim)
        if how < 0.9 and size == 4:
            return self.call("reshape", self.parameter(*before, 2, 2, *after), sizes)
        if how < 0.95:
            whole = self.parameter(*before, 2 * size, *after)
            return self.call("split_with_sizes", whole, (size, size), dim)
        order = [*range(1, len(sizes)), 0]
        moved = self.parameter(*(sizes[order[i]] for i in range(len(sizes))))
        inverse = tuple(order.index(i) for i in range(len(sizes)))
        return self.call("permute", moved, inverse)

    def like(self, ref: Ref) -> Ref:
        """A tensor that broadcasts with another one."""
        shape = self.shape(ref)
        if self.random.random() < 0.15:
            return ref
        kept = shape[self.pick(0, 0, 0, *range(len(shape))) :]
        return self.x(None, *(1 if self.random.random() < 0.25 else size for size in kept)) if kept else self.x(0)

    def mask(self, ref: Ref) -> Ref:
        return self.call(self.pick("gt.Scalar", "lt.Scalar"), self.like(ref), self.pick(0.0, 0.3, -0.2))

    def dim(self, ref: Ref) -> int:
        return self.random.randrange(len(self.shape(ref)))

    def positive(self, ref: Ref) -> Ref:
        return self.call("exp", ref)


PRELUDES: list[Callable[[Calls, Ref], Ref]] = [
    lambda m, x: m.call("neg", x),
    lambda m, x: m.call("abs", x),
    lambda m, x: m.call("relu", x),
    lambda m, x: m.call("exp", m.call("tanh", x)),
    lambda m, x: m.call("square", x),
    lambda m, x: m.call("mul.Tensor", x, m.pick(2.0, -0.5)),
    lambda m, x: m.call("add.Tensor", x, m.pick(1.0, 0.25)),
    lambda m, x: m.call("mul.Tensor", x, m.parameter(*(1 for _ in m.shape(x)))),
    lambda m, x: m.call("add.Tensor", x, m.parameter(*(s if m.pick(0, 1) else 1 for s in m.shape(x)))),
    lambda m, x: m.call("mul.Tensor", x, m.parameter(*m.shape(x)[-1:])),
    lambda m, x: m.call("log", m.call("abs", x)),
    lambda m, x: m.call("clone", x),
    lambda m, x: m.call("where.ScalarOther", m.mask(x), m.call("expand", x, m.shape(x)), 0.0) if m.shape(x) else x,
    lambda m, x: m.call("sub.Tensor", x, m.call("mean.dim", x, (m.dim(x),), True)) if m.shape(x) else x,
    lambda m, x: m.call("div.Tensor", x, m.call("linalg_vector_norm", x, 2, (m.dim(x),), True)) if m.shape(x) else x,
]


def unary(*arguments: object) -> Callable[[Calls, str], object]:
    return lambda m, op: m.call(op, m.x(), *arguments)  # type: ignore[arg-type]


def binary(m: Calls, op: str) -> object:
    x = m.x()
    return m.call(op, x, m.like(x))


def choosing(*choices: tuple[object, ...]) -> Callable[[Calls, str], object]:
    return lambda m, op: m.call(op, m.x(), *m.pick(*choices))


CALLS: dict[str, Callable[[Calls, str], object]] = {}


def spelled(name: str) -> str:
    return name if name == "by_mode" else f"aten.{name}" if "." in name else f"aten.{name}.default"


def calls(names: str, build: Callable[[Calls, str], object]) -> None:
    for name in names.split():
        CALLS[spelled(name)] = build


calls(
    """abs neg relu relu6 gelu silu mish tanh sin sinh asinh atan erf sqrt sign floor ceil round trunc expm1 log1p tan
    selu celu hardswish softshrink hardshrink detach clone square nan_to_num positive isnan isinf
    exp exp2 log log2 log10 cos cosh acos acosh asin atanh sigmoid hardsigmoid rsqrt reciprocal erfc erfinv logit
    isfinite log_sigmoid logical_not conj conj_physical real sgn angle""",
    unary(),
)
calls(
    """add.Tensor sub.Tensor rsub.Tensor mul.Tensor div.Tensor maximum minimum max.other min.other atan2 hypot
    floor_divide remainder.Tensor fmod.Tensor eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor xlogy.Tensor
    logaddexp logical_or logical_and logical_xor pow.Tensor_Tensor""",
    binary,
)
calls("add.Scalar sub.Scalar rsub.Scalar mul.Scalar div.Scalar", choosing((2.0,), (-0.5,), (1,), (0.0,), (0.25,)))
calls("eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar", choosing((0.0,), (0.5,), (1,)))
calls("remainder.Scalar fmod.Scalar floor_divide.Scalar", choosing((2.0,), (-0.5,)))
calls("leaky_relu", choosing((0.1,), (-0.5,), (2.0,), ()))
calls("elu", choosing((), (0.5,), (-1.0,)))
calls("hardtanh", choosing((), (0.5, 2.0), (-2.0, -0.5), (-0.5, 0.5)))
calls("clamp", choosing((0.5,), (-0.5,), (0.0,), (None, 0.5), (None, -0.5), (-0.5, 0.5), (0.25, 0.75), (None, 0.0)))
calls("clamp_min clamp_max", choosing((0.5,), (-0.5,), (0.0,)))
calls("clamp_min.Tensor clamp_max.Tensor clamp.Tensor", binary)
calls("pow.Scalar", lambda m, op: m.call(op, m.pick(2.0, 0.5, -2.0), m.x()))
calls("softplus", choosing((), (2.0, 1.0)))
calls("threshold", choosing((0.1, 0.5), (-0.5, 0.0), (0.0, -1.0)))
calls("pow.Tensor_Scalar", choosing((2,), (3,), (1,), (0,), (-1,), (-2,), (0.5,), (1.5,), (-0.5,), (2.0,)))
calls("to.dtype", unary(Dtype(WEIGHTS)))
calls("zeros_like ones_like", unary())
calls("full_like", choosing((0.5,), (0.0,), (-inf,)))


def call(names: str) -> Callable[[Callable[[Calls, str], object]], Callable[[Calls, str], object]]:
    def register(function: Callable[[Calls, str], object]) -> Callable[[Calls, str], object]:
        calls(names, function)
        return function

    return register


# Pointwise, of several operands


@call("where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar masked_fill.Tensor")
def _choices(m: Calls, op: str) -> object:
    x = m.x()
    number = m.pick(0.0, 1.0, -0.5, -inf)
    if "masked" in op:
        filling = m.given(torch.tensor(number)) if op.endswith("Tensor") else number
        return m.call("exp", m.call(op, x, m.call("expand", m.mask(x), m.shape(x)), filling))
    mask = m.mask(x)
    picks = {"self": (x, m.like(x)), "ScalarOther": (x, number), "ScalarSelf": (number, x), "Scalar": (number, 0.0)}
    return m.call("tanh", m.call(op, mask, *picks[op.split(".")[2]]))


@call("lerp.Scalar lerp.Tensor addcmul addcdiv")
def _three(m: Calls, op: str) -> object:
    x = m.x()
    third = 0.3 if op.endswith("Scalar") else m.like(x)
    return m.call(op, x, m.x(None, *m.shape(x)), third)


@call("add.Tensor sub.Tensor")
def _sums(m: Calls, op: str) -> object:
    x = m.x()
    if m.pick(0, 1):
        return m.call(op, x, m.like(x), **({"alpha": m.pick(2.0, -1.0, 0.5)} if m.pick(0, 1) else {}))
    return m.call(op, x, m.pick(1.0, -0.5, 2)) if m.pick(0, 1) else m.call(op, m.x(), x) if not m.shape(x) else x


@call("by_mode")
def _by_mode(m: Calls, op: str) -> object:
    x = m.x()
    return m.call("by_mode", x, m.call("neg", x))


@call("dropout feature_dropout alpha_dropout")
def _dropout(m: Calls, op: str) -> object:
    return m.call(op, m.x(3), 0.2, False)


@call("prelu")
def _prelu(m: Calls, op: str) -> object:
    x = m.x(m.pick(2, 3))
    return m.call(op, x, m.x(None, m.pick(1, m.shape(x)[1])))


@call("bitwise_or.Tensor bitwise_and.Tensor bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor")
def _bits(m: Calls, op: str) -> object:
    x = m.x()
    return m.call(op, m.mask(x), m.mask(x))


@call("bitwise_not")
def _not(m: Calls, op: str) -> object:
    return m.call(op, m.mask(m.x()))


@call("div.Tensor_mode div.Scalar_mode")
def _rounding(m: Calls, op: str) -> object:
    x = m.x()
    return m.call(op, x, m.like(x) if "Tensor" in op else 0.5, rounding_mode=m.pick("floor", "trunc"))


# Contractions


@call("linear")
def _linear(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    into, out = m.shape(x)[-1], m.pick(2, 3, 4)
    bias = (m.x(None, out),) if m.pick(0, 1) else ()
    return m.call(op, x, m.x(None, out, into), *bias)


@call("mm addmm bmm baddbmm mv addmv dot vdot outer matmul")
def _matrices(m: Calls, op: str) -> object:
    b, n, i, o = m.sizes(4)
    name = op.split(".")[1]
    x, y = m.x(None, n, i), m.x(None, i, o)
    if name == "matmul":
        left, right = m.pick((b, n, i), (n, i), (i,), (1, n, i)), m.pick((b, i, o), (i, o), (i,))
        return m.call(op, m.x(None, *left), m.x(None, *right))
    if name in ("mm", "addmm"):
        return m.call(op, *((m.x(None, o),) if name == "addmm" else ()), x, y)
    if name in ("bmm", "baddbmm"):
        bias = (m.x(None, b, n, o),) if name == "baddbmm" else ()
        return m.call(op, *bias, m.x(None, b, n, i), m.x(None, b, i, o))
    if name in ("mv", "addmv"):
        return m.call(op, *((m.x(None, n),) if name == "addmv" else ()), x, m.x(None, i))
    return m.call(op, m.x(None, i), m.x(None, o if name == "outer" else i))


@call("bilinear")
def _bilinear(m: Calls, op: str) -> object:
    n, i, j, o = m.sizes(4)
    return m.call(op, m.x(None, n, i), m.x(None, n, j), m.x(None, o, i, j), *m.pick((), (m.x(None, o),)))


EQUATIONS = ("ij,jk->ik", "ij,ij->i", "ii->i", "ii->", "ij->ji", "i,j->ij", "ij,jk,kl->il", "bij,bj->bi", "ij,ij->ij",
             "ijj->i", "ij->i", "iji,j->i", "abc,acd->abd", "...i,ij->...j", "ij,j", "ii,i->i", "ij,ij->")  # fmt: skip


@call("einsum")
def _einsum(m: Calls, op: str) -> object:
    text = m.pick(*EQUATIONS)
    sizes = dict(zip("abcdijkl", m.sizes(8), strict=True))
    shapes = [[sizes[c] for c in part.replace("...", "ab")] for part in text.split("->")[0].split(",")]
    return m.call(op, text, tuple(m.x(None, *shape) for shape in shapes))


@call("scaled_dot_product_attention")
def _attention(m: Calls, op: str) -> object:
    batch, heads, n, k = m.pick(1, 2), m.pick(2, 3), m.pick(2, 3), m.pick(2, 3)
    length, value = m.pick(n, 3, 4), m.pick(k, 3)
    grouped = m.pick(False, True)
    q = m.x(None, batch, heads * (2 if grouped else 1), n, k)
    keys, values = m.x(None, batch, heads, length, k), m.x(None, batch, heads, length, value)
    if m.pick(0, 1):
        q = m.call("mul.Tensor", q, 0.3)
    count = m.shape(q)[1]
    mask = m.pick(
        None, (n, length), (1, 1, n, length), (batch, 1, n, length), (1, count, n, length), (count, 1, length)
    )
    shown = None if mask is None else m.x(None, *mask)
    if shown is not None and m.pick(0, 1):
        shown = m.call("gt.Scalar", shown, -0.5)
    causal = mask is None and m.pick(False, True)
    return m.call(op, q, keys, values, shown, 0.0, causal, scale=m.pick(0.5, 1.0), enable_gqa=grouped)


@call("conv1d conv2d conv3d")
def _convolution(m: Calls, op: str) -> object:
    space = int(op[len("aten.conv")])
    groups = m.pick(1, 1, 2, 3)
    into, out, window = groups * m.pick(1, 2), groups * m.pick(1, 2, 3), m.pick(1, 2)
    image = m.x(None, *m.pick((2,), (1,), ()), into, *[3] * space)
    weight = m.x(None, out, into // groups, *[window] * space)
    bias = m.x(None, out) if m.pick(0, 1) else None
    return m.call(op, image, weight, bias, (1,) * space, (m.pick(0, 1),) * space, (1,) * space, groups)


@call("conv1d.padding conv2d.padding conv3d.padding")
def _padded_convolution(m: Calls, op: str) -> object:
    space = int(op[len("aten.conv")])
    image, weight = m.x(None, 2, 4, *[3] * space), m.x(None, 4, 2, *[3] * space)
    return m.call(op, image, weight, m.x(None, 4), (1,) * space, "same", (1,) * space, 2)


@call("conv_transpose1d conv_transpose2d.input conv_transpose3d.input")
def _transposed(m: Calls, op: str) -> object:
    space = int(op[len("aten.conv_transpose")])
    groups = m.pick(1, 1, 2)
    into, each, window = groups * m.pick(1, 2), m.pick(1, 2, 3), m.pick(1, 2)
    image, weight = m.x(None, 2, into, *[3] * space), m.x(None, into, each, *[window] * space)
    bias = m.x(None, each * groups) if m.pick(0, 1) else None
    ones, zeros = (1,) * space, (0,) * space
    return m.call(op, image, weight, bias, ones, zeros, zeros, groups, ones)


# Layout


@call("reshape")
def _reshape(m: Calls, op: str) -> object:
    a, b, c = m.sizes(3)
    have, want = m.pick(
        ((a, b, c), (a, b * c)),
        ((a, b * c), (a, b, c)),
        ((a, b, c), (a * b, c)),
        ((a * b, c), (a, b, c)),
        ((a, b), (1, a, b)),
        ((a, 1, b), (a, b)),
        ((a * b, c), (a, b * c)),
        ((a, b, c), (a * b * c,)),
    )
    x = m.x(None, *have)
    if len(have) == 2 and m.pick(0, 1):  # parts of a sum of products
        x = m.call("cat", (x, m.x(None, *have)), 0)
        want = (2 * want[0], *want[1:])
    return m.call(op, x, want)


@call("permute")
def _permute(m: Calls, op: str) -> object:
    x = m.x(3)
    return m.call(op, x, m.pick((0, 2, 1), (2, 0, 1), (1, 0, 2)))


@call("unsqueeze flip")
def _at(m: Calls, op: str) -> object:
    x = m.x(m.pick(2, 3))
    return m.call(op, x, m.dim(x) if "unsqueeze" in op else (m.dim(x),))


@call("expand")
def _expand(m: Calls, op: str) -> object:
    a, b, c = m.sizes(3)
    x = m.x(None, *m.pick((1, b), (a, 1), (1, 1), (b,), (1, b, 1)))
    want = {1: (a, b), 2: (c, a, b) if m.pick(0, 1) else (a, b), 3: (a, b, c)}[len(m.shape(x))]
    want = tuple(
        h if h != 1 else w for h, w in zip((1,) * (len(want) - len(m.shape(x))) + m.shape(x), want, strict=True)
    )
    return m.call(op, x, want)


@call("repeat tile")
def _repeat(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2))
    counts = tuple(m.pick(1, 2, 3) for _ in range(len(m.shape(x)) + m.pick(0, 1)))
    return m.call(op, x, counts)


@call("repeat_interleave.self_int")
def _interleave(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    return m.call(op, x, m.pick(2, 3), m.dim(x))


@call("cat concat concatenate")
def _cat(m: Calls, op: str) -> object:
    shape, dim = m.sizes(2), m.pick(0, 1)
    parts = []
    for _ in range(m.pick(2, 3)):
        sizes = list(shape)
        sizes[dim] = m.pick(1, 2, 3)
        parts.append(m.x(None, *sizes))
    if m.pick(0, 1):
        parts.append(parts[0])
    whole = m.call(op, tuple(parts), dim)
    count = m.shape(whole)[dim]
    at = m.random.randrange(1, count)
    pieces = m.call("split_with_sizes", whole, (at, count - at), dim) if m.pick(0, 1) else whole
    return m.call("sum.dim_IntList", pieces, (dim,))


@call("stack")
def _stack(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2))
    return m.call(op, (x, m.x(None, *m.shape(x))), m.random.randrange(len(m.shape(x)) + 1))


@call("split_with_sizes")
def _split(m: Calls, op: str) -> object:
    a, b, c = m.sizes(3)
    first, second = m.x(None, a, b), m.x(None, a, c)
    whole = m.call("cat", (first, second, m.x(None, a, b)), 1) if m.pick(0, 1) else m.x(None, a, 2 * b + c)
    m.call(op, whole, m.pick((b, c, b), (b, c + b), (b + c, b), (1, 2 * b + c - 1)), 1)
    heads = m.call("reshape", m.x(None, 3 * a * b), (3 * a, b)) if m.pick(0, 1) else m.x(None, 3 * a, b)
    return m.call(op, heads, (a, a, a), 0)


@call("slice.Tensor")
def _slice(m: Calls, op: str) -> object:
    a, b, c = m.sizes(3)
    whole = m.call("cat", (m.x(None, a, b), m.x(None, a, c)), 1) if m.pick(0, 1) else m.x(None, a, b + c)
    step = m.pick(1, 1, 1, 2)
    if step == 2:
        pairs = m.x(None, a, 2 * b) if m.pick(0, 1) else m.call("reshape", m.x(None, a, b, 2), (a, 2 * b))
        return m.call(op, pairs, 1, m.pick(0, 1), 2 * b - 1, 2)
    start, end = m.pick((0, b), (b, b + c), (1, b + c), (0, b + c - 1), (1, 2), (b, b))
    return m.call(op, whole, 1, start, end, 1)


@call("select.int")
def _select(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    dim = m.dim(x)
    return m.call(op, x, dim, m.random.randrange(m.shape(x)[dim]))


@call("unbind.int")
def _unbind(m: Calls, op: str) -> object:
    x = m.x(m.pick(2, 3))
    return m.call(op, x, m.dim(x))


@call("pad constant_pad_nd")
def _pad(m: Calls, op: str) -> object:
    amounts = m.pick((1, 0), (0, 2), (0, 0, 1, 1), (-1, 0), (1, 1))
    x = m.x(m.pick(2, 3))
    if "constant" in op:
        return m.call(op, x, amounts, m.pick(0.0, 1.0))
    return m.call(op, m.x(3), (1, 1), m.pick("reflect", "replicate", "constant", "circular"), None)


@call("roll")
def _roll(m: Calls, op: str) -> object:
    x = m.x(2)
    return m.call(op, x, (1,), (m.dim(x),))


@call("slice_scatter select_scatter")
def _scatter_part(m: Calls, op: str) -> object:
    a, b, c = m.sizes(3)
    x = m.x(None, a, b + c)
    if "select" in op:
        return m.call(op, x, m.x(None, a), 1, m.pick(0, b))
    return m.call(op, x, m.x(None, a, b), 1, *m.pick((0, b), (c, b + c)), 1)


@call("tril triu")
def _triangle(m: Calls, op: str) -> object:
    return m.call(op, m.x(m.pick(2, 3)), m.pick(0, 1, -1))


@call("diagonal view_as_real view_as_complex pixel_shuffle pixel_unshuffle meshgrid meshgrid.indexing")
def _other_layouts(m: Calls, op: str) -> object:
    name = op.split(".")[1]
    if name == "diagonal":
        return m.call(op, m.x(2))
    if name == "meshgrid":
        given = (m.x(1), m.x(1))
        return m.call(op, given, indexing="ij") if op.endswith("indexing") else m.call(op, given)
    if name.startswith("view"):
        a, b = m.sizes(2)  # the last dimension contiguous: side by side, or cut off one that grows
        sides = (m.x(None, a, b), m.x(None, a, b))
        whole = m.call("stack", sides, 2) if m.pick(0, 1) else m.call("reshape", m.parameter(a, 2 * b), (a, b, 2))
        pairs = m.call("view_as_complex", whole)
        return m.call("view_as_real", m.call("mul.Tensor", pairs, m.pick(pairs, 0.5)))
    return m.call(op, m.x(None, 1, 8, 2, 3) if name == "pixel_shuffle" else m.x(None, 1, 2, 4, 2), 2)


# Reductions and what works along a dimension


def dims_of(m: Calls, x: Ref) -> tuple[int, ...]:
    rank = len(m.shape(x))
    return m.pick(*((d,) for d in range(rank)), tuple(range(rank)), tuple(range(1, rank)) or (0,))


@call("sum.dim_IntList mean.dim amax amin")
def _over(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    return m.call(op, x, dims_of(m, x), m.pick(False, True))


@call("sum mean max min prod any all std var nansum median nanmedian argmax argmin")
def _all(m: Calls, op: str) -> object:
    return m.call(op, m.x(m.pick(1, 2)))


@call("prod.dim_int any.dim all.dim argmax argmin max.dim min.dim median.dim")
def _over_one(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    return m.call(op, x, m.dim(x), m.pick(False, True))


@call("any.dims all.dims logsumexp")
def _over_some(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    return m.call(op, x, dims_of(m, x), m.pick(False, True))


@call("var.correction std.correction var_mean.correction std_mean.correction")
def _spread(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    return m.call(op, x, dims_of(m, x), correction=m.pick(0, 1, 0.5), keepdim=m.pick(False, True))


@call("var.dim std.dim var_mean.dim")
def _spread_or_not(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    return m.call(op, x, dims_of(m, x), m.pick(False, True), m.pick(False, True))


@call("norm.ScalarOpt_dim")
def _norm(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    return m.call(op, x, m.pick(2, 1, 3.0, inf, 0, -1), dims_of(m, x), m.pick(False, True))


@call("norm.Scalar")
def _norm_of_all(m: Calls, op: str) -> object:
    return m.call(op, m.x(2), m.pick(2, 1, inf))


@call("linalg_vector_norm")
def _vector_norm(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    return m.call(op, x, m.pick(2, 1, 3.0, inf, 0, -1, -inf), dims_of(m, x), m.pick(False, True))


@call("norm.ScalarOpt_dtype norm.ScalarOpt_dim_dtype")
def _norm_in_a_type(m: Calls, op: str) -> object:
    x = m.x(2)
    return m.call(op, x, m.pick(2, 1, 0), *((dims_of(m, x), False) if "dim" in op else ()), dtype=Dtype("float32"))


@call("count_nonzero.dim_IntList count_nonzero")
def _count(m: Calls, op: str) -> object:
    x = m.x(2)
    return m.call(op, x, dims_of(m, x)) if "dim" in op else m.call(op, x)


@call("softmax.int log_softmax.int _softmax _log_softmax cumsum cumprod sort argsort")
def _along(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    if m.pick(0, 1) and "softmax" in op:
        x = m.call("masked_fill.Scalar", x, m.call("expand", m.mask(x), m.shape(x)), -inf)
    extra = (False,) if op.startswith("aten._") else ()
    return m.call(op, x, m.dim(x), *extra)


@call("sort.stable argsort.stable")
def _stable(m: Calls, op: str) -> object:
    x = m.x(2)
    return m.call(op, x, stable=True, dim=m.dim(x), descending=m.pick(False, True))


@call("topk")
def _topk(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2))
    dim = m.dim(x)
    found = m.call(op, x, m.pick(1, 2), dim)
    return m.call("gather", m.x(None, *m.shape(x)), dim, Ref(found.name.replace("_0", "_1")))


@call("diff")
def _diff(m: Calls, op: str) -> object:
    x = m.x(2)
    return m.call(op, x, 1, m.dim(x))


@call("glu")
def _glu(m: Calls, op: str) -> object:
    a, b = m.sizes(2)
    x = m.call("cat", (m.x(None, a, b), m.x(None, a, b)), 1) if m.pick(0, 1) else m.x(None, a, 2 * b)
    return m.call(op, x, m.pick(1, -1))


# Norms


@call("layer_norm rms_norm")
def _layer_norm(m: Calls, op: str) -> object:
    x = m.x(m.pick(1, 2, 3))
    count = m.pick(*range(1, len(m.shape(x)) + 1))
    normal = m.shape(x)[-count:]
    weight = m.x(None, *normal) if m.pick(0, 1) else None
    if "rms" in op:
        return m.call(op, x, normal, weight, 0.1)
    return m.call(op, x, normal, weight, m.x(None, *normal) if m.pick(0, 1) else None, 0.1)


@call("group_norm")
def _group_norm(m: Calls, op: str) -> object:
    groups = m.pick(1, 2)
    each = m.pick(2, 3)
    x = m.x(None, 2, groups * each, 3)
    if m.pick(0, 1):
        x = m.call("cat", (m.x(None, 2, each, 3), m.x(None, 2, each, 3)), 1)
    count = m.shape(x)[1]
    both = (m.x(None, count), m.x(None, count)) if m.pick(0, 1) else (None, None)
    return m.call(op, x, groups, *both, 0.1)


@call("batch_norm")
def _batch_norm(m: Calls, op: str) -> object:
    x = m.x(None, *m.pick((3, 4), (2, 4, 3), (2, 3, 2, 2)))
    count = m.shape(x)[1]
    both = (m.x(None, count), m.x(None, count)) if m.pick(0, 1) else (None, None)
    variance = m.x(None, count) if m.pick(0, 1) else m.call("square", m.parameter(count))
    return m.call(op, x, *both, m.x(None, count), variance, False, 0.1, 0.05, False)


@call("instance_norm")
def _instance_norm(m: Calls, op: str) -> object:
    x = m.x(None, 2, 3, 4)
    both = (m.x(None, 3), m.x(None, 3)) if m.pick(0, 1) else (None, None)
    return m.call(op, x, *both, None, None, True, 0.1, 0.05, False)


# Lookups


@call("embedding")
def _embedding(m: Calls, op: str) -> object:
    rows = m.pick(3, 4)
    return m.call(op, m.x(None, rows, m.pick(2, 3)), m.index(rows, *m.pick((2,), (2, 3))))


@call("index_select")
def _index_select(m: Calls, op: str) -> object:
    x = m.x(2)
    dim = m.dim(x)
    return m.call(op, x, dim, m.index(m.shape(x)[dim], 3))


@call("index.Tensor")
def _index(m: Calls, op: str) -> object:
    x = m.x(3)
    a, b, c = m.shape(x)
    low = lambda size: -size if m.pick(0, 1) else 0  # noqa: E731
    first, second, third = m.index(a, 2, low=low(a)), m.index(b, 2, low=low(b)), m.index(c, 3, 1, low=low(c))
    return m.call(op, x, m.pick((first,), (None, second), (first, second), (first, None, third), (None, second, third)))


@call("gather")
def _gather(m: Calls, op: str) -> object:
    x = m.x(2)
    dim = m.dim(x)
    sizes = list(m.shape(x))
    sizes[dim] = m.pick(sizes[dim], 2)
    if m.pick(0, 1):
        sizes[1 - dim] = max(1, sizes[1 - dim] - 1)
    return m.call(op, x, dim, m.index(m.shape(x)[dim], *sizes))


@call("scatter.value scatter.src scatter_add scatter_reduce.two")
def _scatter(m: Calls, op: str) -> object:
    x = m.x(2)
    dim = m.dim(x)
    index = m.index(m.shape(x)[dim], *m.shape(x))
    if op.endswith("value"):
        return m.call(op, x, dim, index, m.pick(0.0, 1.0))
    source = m.x(None, *m.shape(x))
    return m.call(op, x, dim, index, source, *(("sum",) if "reduce" in op else ()))


@call("index_add index_copy")
def _index_add(m: Calls, op: str) -> object:
    x = m.x(2)
    dim = m.dim(x)
    sizes = list(m.shape(x))
    sizes[dim] = 2
    return m.call(op, x, dim, m.index(m.shape(x)[dim], 2), m.x(None, *sizes))


@call("index_put")
def _index_put(m: Calls, op: str) -> object:
    x = m.x(2)
    a, b = m.shape(x)
    given = m.pick((m.index(a, 2),), (None, m.index(b, 2)))
    values = m.x(None, *((2, b) if len(given) == 1 else (a, 2)))
    return m.call(op, x, given, values, m.pick(False, True))


@call("one_hot")
def _one_hot(m: Calls, op: str) -> object:
    return m.call("mul.Tensor", m.call(op, m.index(3, 2), 3), m.x(None, 2, 3))


@call("bucketize.Tensor searchsorted.Tensor")
def _search(m: Calls, op: str) -> object:
    x, edges = m.x(2), m.given(torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64))
    return m.call(op, *((x, edges) if "bucketize" in op else (edges, x)))


# Windows, factories, losses


@call("max_pool1d avg_pool1d max_pool2d avg_pool2d max_pool3d avg_pool3d max_pool2d_with_indices")
def _pool(m: Calls, op: str) -> object:
    space = next(int(c) for c in op if c.isdigit())
    x = m.x(None, 2, m.pick(2, 3), *[4] * space)
    window: tuple[object, ...] = ((2,) * space,)
    padding = ((2,) * space, (m.pick(0, 1),) * space)
    return m.call(op, x, *window, *padding)  # type: ignore[arg-type]


@call("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d")
def _adaptive(m: Calls, op: str) -> object:
    space = next(int(c) for c in op if c.isdigit())
    return m.call(op, m.x(None, 2, 3, *[4] * space), (m.pick(1, 2, 3),) * space)


@call("""upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec upsample_bilinear2d.vec
    upsample_bicubic2d.vec upsample_linear1d.vec upsample_trilinear3d.vec upsample_nearest2d upsample_bilinear2d
    upsample_bicubic2d _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec""")
def _upsample(m: Calls, op: str) -> object:
    space = next(int(c) for c in op if c.isdigit())
    corners = () if "nearest" in op else (m.pick(False, True),)
    end = (None,) if op.endswith("vec") else ()
    return m.call(op, m.x(None, 1, 3, *[3] * space), (5,) * space, *corners, *end)


@call("grid_sampler")
def _grid(m: Calls, op: str) -> object:
    grid = m.call("tanh", m.x(None, 1, 2, 2, 2))
    return m.call(op, m.x(None, 1, 3, 3, 3), grid, m.pick(0, 1), m.pick(0, 1, 2), m.pick(False, True))


@call("zeros ones full")
def _factory(m: Calls, op: str) -> object:
    x = m.x(2)
    extra = (m.pick(0.0, 0.5, -0.5),) if "full" in op else ()
    return m.call("mul.Tensor", x, m.call(op, m.shape(x), *extra))


@call("new_zeros new_ones new_full")
def _new(m: Calls, op: str) -> object:
    x = m.x(2)
    extra = (m.pick(0.0, 0.5),) if "full" in op else ()
    return m.call("add.Tensor", x, m.call(op, x, m.shape(x), *extra))


@call("arange arange.start arange.start_step")
def _arange(m: Calls, op: str) -> object:
    x = m.x(2)
    count = m.shape(x)[-1]
    numbers = {"default": (count,), "start": (2, 2 + count), "start_step": (1, 1 + 2 * count, 2)}[op.split(".")[2]]
    return m.call("mul.Tensor", x, m.call(op, *numbers))


@call("linspace")
def _linspace(m: Calls, op: str) -> object:
    x = m.x(2)
    return m.call("mul.Tensor", x, m.call(op, -1.0, 1.0, m.shape(x)[-1]))


@call("eye hann_window scalar_tensor")
def _made(m: Calls, op: str) -> object:
    x = m.x(2)
    number = 0.5 if "scalar" in op else m.shape(x)[-1]
    return m.call("mul.Tensor", x, m.call(op, number)) if "eye" not in op else m.call("mm", x, m.call(op, number))


@call("mse_loss l1_loss smooth_l1_loss huber_loss")
def _loss(m: Calls, op: str) -> object:
    x = m.x(2)
    return m.call(op, x, m.x(None, *m.shape(x)), m.pick(0, 1, 2))


@call("cross_entropy_loss nll_loss nll_loss_nd")
def _classes(m: Calls, op: str) -> object:
    x = m.x(None, 2, 3)
    return m.call(op, x, m.index(3, 2), None, m.pick(0, 1))


@call("binary_cross_entropy_with_logits kl_div")
def _probabilities(m: Calls, op: str) -> object:
    x = m.x(2)
    return m.call(op, m.call("sigmoid", x), m.call("sigmoid", m.x(None, *m.shape(x))))


@call("fft_fft fft_rfft fft_irfft fft_fft2 cdist im2col")
def _opaque(m: Calls, op: str) -> object:
    if "cdist" in op:
        return m.call(op, m.x(None, 3, 2), m.x(None, 4, 2))
    if "im2col" in op:
        return m.call(op, m.x(None, 1, 2, 4, 4), (2, 2), (1, 1), (0, 0), (1, 1))
    x = m.x(2)
    return m.call("abs", m.call(op, x))


# Operators without a case, each with the reason
EXEMPT = {
    "random": "rrelu rand randn randint randint.low rand_like randn_like bernoulli.p bernoulli",
    "of no value": "empty_like empty.memory_format new_empty",
    "of integers or complex numbers only": "__lshift__.Scalar __rshift__.Scalar imag polar complex",
    "frozen": "tril_indices triu_indices unfold col2im nonzero_static histc",
    "a state that counts": "add_.Tensor",
}


# What is random or hands complex numbers on, and a loss whose targets must be probabilities.
NO_CASE = {
    "aten._conj.default", "aten.binary_cross_entropy.default", "aten.exponential.default",
    "aten.normal_functional.default", "aten.uniform.default",
}  # fmt: skip


def test_every_operator_has_a_case() -> None:
    exempt = {spelled(name) for text in EXEMPT.values() for name in text.split()}
    newer = {op for op, row in ops.TABLE.items() if row.kind == "opaque"} | NO_CASE
    assert CALLS.keys() | exempt | {"input", "parameter", "getitem"} | newer >= ops.TABLE.keys()
    assert not exempt & CALLS.keys()


def mistakes(op: str, graph: int, growths: int = GROWTHS) -> list[str]:
    """What is said of a random graph around an operator and is not so."""
    maker = Calls(graph)
    CALLS[op](maker, op)
    grower = Grower(maker)
    for seed in range(growths):
        found = grower.grown(seed)
        if found is None:
            return []
        wrong = found.mistakes()
        if wrong:
            return [f"graph {graph}, growth {seed}: {dict(found.sizes)}", *wrong]
    return []


@pytest.mark.parametrize("op", CALLS)
def test_a_row_says_what_is_so(op: str) -> None:
    for graph in range(GRAPHS):
        assert not mistakes(op, graph)
