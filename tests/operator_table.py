"""The programs of `tests.operators` for every row of the operator table."""

# ruff: noqa: B008, PLW0108  the names and defaults of the lambdas' arguments say what they need

from __future__ import annotations

from typing import Any

import torch

from tests.operators import Picks, Positive, row, rows

a: Any = torch.ops.aten

# Pointwise

rows(
    """abs neg relu relu6 gelu silu mish tanh sin sinh asinh atan erf sign floor ceil round trunc expm1 tan leaky_relu
    elu selu celu hardtanh hardswish softshrink hardshrink rrelu square nan_to_num positive exp exp2 cos cosh sigmoid
    hardsigmoid softplus erfc log_sigmoid""",
    lambda op: lambda u: op(u),
)
rows("detach", lambda op: lambda u: op(u))
rows("clone", lambda op: lambda u: op(u))
rows("sqrt log1p log log2 log10", lambda op: lambda u: op(u.detach().abs()))  # sqrt has no gradient at zero
rows("asin acos atanh erfinv", lambda op: lambda u: op(u.tanh() * 0.9))
rows("acosh rsqrt reciprocal", lambda op: lambda u: op(u.abs() + 1))
rows("isnan isfinite", lambda op: lambda u: op(u.sqrt()))
rows("isinf", lambda op: lambda u: op(u.relu().reciprocal()))
rows("zeros_like ones_like", lambda op: lambda u: op(u) + u)
row("logit", lambda u: a.logit(u.sigmoid()), lambda u: a.logit(u.sigmoid(), 0.1))
row("leaky_relu", lambda u: a.leaky_relu(u, 0.3))
row("elu", lambda u: a.elu(u, 2.0, 0.5, 3.0))
row("gelu", lambda u: a.gelu(u, approximate="tanh"))
row("hardtanh", lambda u: a.hardtanh(u, 0.5, 1.0), lambda u: a.hardtanh(u, -2, 0))
row("softplus", lambda u: a.softplus(u, 2, 1))
row("nan_to_num", lambda u: a.nan_to_num(u, 1.0, 2.0, 3.0))
rows("dropout feature_dropout alpha_dropout", lambda op: lambda u: op(u, 0.5, False))
row("to.dtype", lambda u: a.to.dtype(u, torch.float64), lambda u: a.to.dtype(u, torch.int64))
rows(
    """maximum minimum max.other min.other atan2 hypot logaddexp add.Tensor sub.Tensor rsub.Tensor mul.Tensor
    xlogy.Tensor""",
    lambda op: lambda u, v: op(u, v.relu() + 1),
    lambda op: lambda h, p=(4, 1): op(p, h.relu() + 1),
)
rows(
    """logical_or logical_xor logical_and eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor""",
    lambda op: lambda u, v: op(u.relu(), v.relu()),
    lambda op: lambda h, p=(4, 1): op(p.relu(), h.relu()),
)
rows("logical_not", lambda op: lambda u: op(u.relu()))
rows(
    "add.Tensor mul.Tensor",
    lambda op: lambda u, v: op(u, v),
    lambda op: lambda h, p=(6,): op(h, p),
    lambda op: lambda u: op(u, u),
)
rows("add.Tensor sub.Tensor rsub.Tensor", lambda op: lambda u, v: op(u, v, alpha=2))
rows("add.Scalar sub.Scalar rsub.Scalar", *[lambda op, k=k: lambda u: op(u, *k) for k in ((2,), (0,), (1, 3))])
row("mul.Scalar", lambda u: a.mul.Scalar(u, 2), lambda u: a.mul.Scalar(u, 0.0))
rows(
    "bitwise_or.Tensor bitwise_xor.Tensor bitwise_and.Tensor __or__.Tensor __xor__.Tensor __and__.Tensor",
    lambda op: lambda u, v: op((u * 3).long(), (v * 3).long()),
)
row("bitwise_not", lambda u: a.bitwise_not((u * 3).long()))
rows("__lshift__.Scalar __rshift__.Scalar", lambda op: lambda u: op((u * 3).long(), 2))
row("lerp.Scalar", lambda u, v: a.lerp.Scalar(u, v, 0.3))
row("lerp.Tensor", lambda u, v, p=(6,): a.lerp.Tensor(u, v, p))
rows(
    "div.Tensor remainder.Tensor fmod.Tensor",
    lambda op: lambda u, v: op(u, v.abs() + 1),
    lambda op: lambda h, p=(4, 1): op(p, h.abs() + 1),
)
row("div.Tensor", lambda u, v: a.div.Tensor(u, v), lambda u: a.div.Tensor(u, u))
row(
    "div.Tensor_mode",
    *[lambda u, v, m=m: a.div.Tensor_mode(u, v.abs() + 1, rounding_mode=m) for m in ("floor", "trunc")],
)
rows("div.Scalar remainder.Scalar fmod.Scalar", lambda op: lambda u: op(u, 2), lambda op: lambda u: op(u, -0.5))
row("div.Scalar_mode", *[lambda u, m=m: a.div.Scalar_mode(u, 0.5, rounding_mode=m) for m in ("floor", "trunc")])
row("floor_divide", lambda u, v: a.floor_divide(u.detach(), v.detach().abs() + 1))  # it has no gradient
row("floor_divide.Scalar", lambda u: a.floor_divide.Scalar(u.detach(), -0.5))
row("pow.Tensor_Scalar", lambda u: a.pow.Tensor_Scalar(u, 2), lambda u: a.pow.Tensor_Scalar(u, 0))
row("pow.Tensor_Scalar", *[lambda u, k=k: a.pow.Tensor_Scalar(u.abs() + 1, k) for k in (-1, 0.5)])
row("pow.Tensor_Tensor", lambda u, v: a.pow.Tensor_Tensor(u.abs() + 1, v))
row("pow.Scalar", lambda u: a.pow.Scalar(2.0, u), lambda u: a.pow.Scalar(0.0, u.relu()))
row("clamp", lambda u: a.clamp(u, -1, 1), lambda u: a.clamp(u, 0.5, 1), lambda u: a.clamp(u, None, -1))
row("clamp.Tensor", lambda u, v, p=(6,): a.clamp.Tensor(u, p, v))
rows("clamp_min clamp_max", lambda op: lambda u: op(u, 0.5), lambda op: lambda u: op(u, -0.5))
rows("clamp_min.Tensor clamp_max.Tensor", lambda op: lambda u, p=(6,): op(u, p))
rows(
    "eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar",
    lambda op: lambda u: op(u.relu(), 0),
    lambda op: lambda u: op(u.round(), 1),
)
row("where.self", lambda u, v: a.where.self(u > 0, u, v), lambda h, g, p=(4, 1): a.where.self(p > 0, h, g))
row("where.ScalarOther", lambda u, v: a.where.ScalarOther(u > 0, v, 1.0))
row("where.ScalarSelf", lambda u, v: a.where.ScalarSelf(u > 0, 1.0, v))
row("where.Scalar", lambda u: a.where.Scalar(u > 0, 1.0, 2.0))
row(
    "masked_fill.Scalar",
    lambda u, v: a.masked_fill.Scalar(u, v > 0, 2.0),
    lambda h, p=(4, 1): a.masked_fill.Scalar(h, p > 0, 0.0),
)
row("masked_fill.Tensor", lambda u, v, s=(): a.masked_fill.Tensor(u, v > 0, s))
row("threshold", lambda u: a.threshold(u, 0.1, 20), lambda u: a.threshold(u, -0.1, 0))
row("polar", lambda u, v: a.polar(u.abs() + 1, v))
row("complex", lambda u, v: a.complex(u, v))
row("angle", lambda u, v: a.angle(a.complex(u, v + 2)))
rows("sgn conj_physical", lambda op: lambda u, v: op(a.complex(u, v)).real.clone())
rows("conj _conj real imag", lambda op: lambda u, v: op(a.complex(u, v)).clone())
row("bernoulli", lambda u: a.bernoulli((u > 0).float()))
row("bernoulli.p", lambda u: a.bernoulli.p(u.detach(), 1.0))
rows(
    "addcmul addcdiv",
    lambda op: lambda u, v, h=[6]: op(u, v, h.abs() + 1),
    lambda op: lambda h, p=(4, 1): op(h, p, p.abs() + 1, value=2),
)
row("full_like", lambda u: a.full_like(u, 2.0) * u, lambda u: a.full_like(u, 0.0) + u)
rows("empty_like rand_like randn_like", lambda op: lambda u: a.where.self(u == u, u, op(u)))

# Contractions

row(
    "linear",
    lambda h, p=(5, 6): a.linear(h, p),
    lambda h, p=(5, 6), b=(5,): a.linear(h, p, b),
    lambda h=[6], p=(5, 6), b=(5,): a.linear(h, p, b),
)
row("mm", lambda h=[6], p=(6, 5): a.mm(h, p))
row("bmm", lambda h, g: a.bmm(h, g.mT), lambda h, g: a.bmm(h.mT, g))
row("mv", lambda h=[6], p=(6,): a.mv(h, p))
row("dot", lambda h, p=(6,), q=(6,): h * a.dot(p, q), lambda p=(6,): a.dot(p, p))
row("vdot", lambda h, p=(6,), q=(6,): h * a.vdot(p, q))
row("outer", lambda h, p=(4,), q=(6,): h * a.outer(p, q))
row("bilinear", lambda h, g=[4, 3], p=(5, 6, 3), b=(5,): a.bilinear(h, g, p, b))
row(
    "addmm",
    lambda h=[6], p=(6, 5), b=(5,): a.addmm(b, h, p),
    lambda h=[6], g=[5], p=(6, 5): a.addmm(g, h, p, beta=0.5, alpha=2),
)
row(
    "baddbmm",
    lambda h, g=[6, 5], k=[4, 5]: a.baddbmm(k, h, g, beta=0.5),
    lambda h, g=[6, 5], p=(1, 1, 5): a.baddbmm(p, h, g, alpha=2),
)
row("addmv", lambda h=[6], p=(6,): a.addmv(h[:, 0], h, p), lambda h=[6], p=(6,), g=[3]: a.addmv(g.sum(1), h, p, beta=2))
row(
    "matmul",
    lambda h, p=(6, 5): a.matmul(h, p),
    lambda h, p=(6,): a.matmul(h, p),
    lambda h, p=(5, 4): a.matmul(p, h),
    lambda h, g=[6, 3]: a.matmul(h, g),
    lambda h=[3, 4, 6], p=(3, 6, 5): a.matmul(h, p),
    lambda h=[3, 4, 6], g=[1, 6, 5]: a.matmul(h, g),
    lambda p=(6,), q=(6,): a.matmul(p, q),
)
row(
    "einsum",
    lambda h, p=(5, 3, 6): a.einsum("nai,oci->naoc", [h, p]),
    lambda h, p=(6, 5): a.einsum("...i,io->...o", [h, p]),
    lambda h, g: a.einsum("nai,nbi->nab", [h, g]),
    lambda h=[6, 6]: a.einsum("naa->na", [h]),
    lambda h=[6, 6]: a.einsum("naa->n", [h]),
    lambda h, p=(6, 6): a.einsum("nai,ii->na", [h, p]),
    lambda h: a.einsum("nai->nia", [h]),
    lambda h, p=(4,), q=(6,): a.einsum("nai,a,i->n", [h, p, q]),
    lambda h, p=(6,): a.einsum("nai,c->naic", [h, p]),
)
sdpa = a.scaled_dot_product_attention
row(
    "scaled_dot_product_attention",
    lambda q=[2, 3, 4], k=[2, 5, 4], v=[2, 5, 6]: sdpa(q, k, v),
    lambda q=[2, 3, 4], k=[2, 5, 4], v=[2, 5, 6], p=(3, 5): sdpa(q, k, v, p, scale=0.3),
    lambda q=[2, 3, 4], k=[2, 5, 4], v=[2, 5, 6], p=(2, 1, 5): sdpa(q, k, v, p > 0.1),
    lambda q=[2, 5, 4], k=[2, 5, 4], v=[2, 5, 6]: sdpa(q, k, v, is_causal=True),
    lambda q=[6, 3, 4], k=[2, 5, 4], v=[2, 5, 6]: sdpa(q, k, v, enable_gqa=True),
    lambda q=[3, 4], k=[5, 4], v=[5, 6]: sdpa(q, k, v),
)
row(
    "conv1d",
    lambda h, p=(5, 4, 3), b=(5,): a.conv1d(h, p, b),
    lambda h, p=(5, 4, 1): a.conv1d(h, p),
    lambda h, p=(4, 1, 3), b=(4,): a.conv1d(h, p, b, [1], [1], [1], 4),
    lambda h, p=(6, 2, 3): a.conv1d(h, p, None, [2], [1], [1], 2),
    lambda h=[2, 6], g=[2, 6], p=(6, 2, 3): a.conv1d(torch.cat([h, g], 1), p, None, [1], [1], [1], 2),
    lambda h=[2, 6], g=[4, 6], p=(6, 2, 3): a.conv1d(torch.cat([h, g], 1), p, None, [1], [1], [1], 3),
    lambda h, p=(8, 1, 1): a.conv1d(h, p, None, [1], [0], [1], 4),
)
row(
    "conv2d",
    lambda h=[4, 3, 5], p=(5, 4, 3, 2), b=(5,): a.conv2d(h, p, b, [2, 1], [1, 1]),
    lambda h=[4, 3, 5], p=(6, 2, 1, 1): a.conv2d(h, p, None, [1, 1], [0, 0], [1, 1], 2),
)
row(
    "conv3d",
    lambda h=[4, 3, 2, 2], p=(5, 4, 3, 2, 1), b=(5,): a.conv3d(h, p, b),
    lambda h=[4, 3, 2, 2], p=(4, 1, 2, 1, 1): a.conv3d(h, p, None, [1, 1, 1], [0, 0, 0], [1, 1, 1], 4),
)
row(
    "conv1d.padding",
    lambda h, p=(5, 4, 3), b=(5,): a.conv1d.padding(h, p, b, [1], "same"),
    lambda h, p=(6, 2, 3): a.conv1d.padding(h, p, None, [1], "valid", [1], 2),
)
row("conv2d.padding", lambda h=[4, 3, 5], p=(5, 4, 3, 2): a.conv2d.padding(h, p, None, [1, 1], "same"))
row("conv3d.padding", lambda h=[4, 3, 2, 2], p=(5, 4, 3, 2, 1): a.conv3d.padding(h, p, None, [1, 1, 1], "same"))
row(
    "conv_transpose1d",
    lambda h, p=(4, 5, 3), b=(5,): a.conv_transpose1d(h, p, b),
    lambda h, p=(4, 3, 2), b=(6,): a.conv_transpose1d(h, p, b, [2], [0], [0], 2),
    lambda h, p=(4, 1, 1): a.conv_transpose1d(h, p, None, [1], [0], [0], 4),
)
row("conv_transpose2d.input", lambda h=[4, 3, 5], p=(4, 5, 2, 2), b=(5,): a.conv_transpose2d.input(h, p, b, [2, 2]))
row("conv_transpose3d.input", lambda h=[4, 3, 2, 2], p=(4, 5, 2, 1, 1): a.conv_transpose3d.input(h, p))

# Layout

n = lambda h: h.shape[0]  # noqa: E731
row(
    "reshape",
    lambda h: a.reshape(h, [n(h), 24]),
    lambda h=[24]: a.reshape(h, [n(h), 4, 6]),
    lambda h: a.reshape(h, [n(h), 2, 2, 3, 2]),
    lambda h, p=(24,): a.reshape(a.reshape(h, [n(h), 24]) * p, [n(h), 4, 6]),
    lambda h, g: a.reshape(torch.cat([h, g], 2), [n(h), 48]),
    lambda h, g: a.reshape(torch.cat([h, g], 1), [n(h), 2, 4, 6]),
    lambda h, g=[4, 2]: a.reshape(torch.cat([h, g], 2), [n(h), 32]),
)
row("permute", lambda h: a.permute(h, [0, 2, 1]), lambda h=[3, 4, 5]: a.permute(h, [0, -1, 1, 2]))
row("unsqueeze", lambda h: a.unsqueeze(h, 1), lambda h: a.unsqueeze(h, -1))
row(
    "expand",
    lambda h, p=(6,): h * a.expand(p, [n(h), 4, 6]),
    lambda h=[4, 1]: a.expand(h, [n(h), 4, 5]),
    lambda h: a.expand(h.unsqueeze(1), [-1, 3, -1, -1]),
)
rows(
    "repeat tile",
    lambda op: lambda h: op(h, [1, 1, 2]),
    lambda op: lambda h: op(h, [1, 3, 1]),
    lambda op: lambda h=[4]: op(h.unsqueeze(1), [1, 2, 3]),
)
row("repeat", lambda p=(4, 6), h=[4, 6]: a.repeat(p, [2, 1, 1]).sum(0) * h, lambda h, p=(6,): a.repeat(p, [4, 1]) * h)
row(
    "repeat_interleave.self_int",
    lambda h: a.repeat_interleave.self_int(h, 2, 1),
    lambda h, p=(12,): a.repeat_interleave.self_int(h, 2, -1) * p,
    lambda h: a.repeat_interleave.self_int(h, 2, -1, output_size=12),
)
rows(
    "cat concat concatenate",
    lambda op: lambda h, g=[4, 3]: op([h, g], 2),
    lambda op: lambda h, g=[2, 6]: op([h, g, h], 1),
    lambda op: lambda h, p=(4, 9): op([h, h[:, :, :3]], 2) * p,
)
row("stack", lambda h, g: a.stack([h, g], 1), lambda h, g: a.stack([h, g], -1), lambda h, g: a.stack([h, g, h], 2))
split = a.split_with_sizes
row(
    "split_with_sizes",
    lambda h: split(h, [2, 4], 2),
    lambda h: split(h, [3, 3], 2)[0] * split(h, [3, 3], 2)[1],
    lambda h: split(h, [1, 3], 1)[1],
    lambda h, g=[4, 2]: split(torch.cat([h, g], 2), [6, 2], 2),
)
row(
    "slice.Tensor",
    lambda h: a.slice.Tensor(h, 2, 0, 3),
    lambda h: a.slice.Tensor(h, 2, 2, 5),
    lambda h: a.slice.Tensor(h, 2, -2),
    lambda h: a.slice.Tensor(h, 2, 0, 6, 2),
    lambda h: a.slice.Tensor(h, 2, 1, 6, 2) * a.slice.Tensor(h, 2, 0, 6, 2),
    lambda h, g=[4, 3]: a.slice.Tensor(torch.cat([h, g], 2), 2, 6, 9),
    lambda h, g=[4, 3]: a.slice.Tensor(torch.cat([g, h], 2), 2, 3, 9),
)
row(
    "select.int",
    lambda h: a.select.int(h, 1, 2),
    lambda h: a.select.int(h, 2, -1),
    lambda h, g=[1, 6]: a.select.int(torch.cat([h, g], 1), 1, 4),
)
row("unbind.int", lambda h: a.unbind.int(h, 1), lambda h: a.unbind.int(h, -1)[2], lambda h=[2, 6]: a.unbind.int(h, 1))
row(
    "pad",
    lambda h: a.pad(h, [1, 2]),
    lambda h: a.pad(h, [0, 0, 1, 0], "constant", 2.0),
    lambda h: a.pad(h, [1, 1], "reflect"),
    lambda h: a.pad(h, [1, 0], "replicate"),
    lambda h: a.pad(h, [2, 2], "circular"),
    lambda h: a.pad(h, [-1, 0]),
)
row(
    "constant_pad_nd",
    lambda h: a.constant_pad_nd(h, [1, 2]),
    lambda h: a.constant_pad_nd(h, [0, 0, 1, 0], 2.0),
    lambda h: a.constant_pad_nd(h, [0, -1]),
)
row("flip", lambda h: a.flip(h, [1]), lambda h: a.flip(h, [1, 2]))
row(
    "roll",
    lambda h: a.roll(h, [1], [1]),
    lambda h: a.roll(h, [1, 2], [1, 2]),
    lambda p=(6,), h=[4, 6]: h * a.roll(p, [2]),
)
row(
    "slice_scatter",
    lambda h, g=[4, 3]: a.slice_scatter(h, g, 2, 1, 4),
    lambda h, g=[2, 6]: a.slice_scatter(h, g, 1, 0, 2),
    lambda h, g=[2, 6]: a.slice_scatter(h, g, 1, 0, 4, 2),
)
row("select_scatter", lambda h, g=[6]: a.select_scatter(h, g, 1, 2), lambda h, g=[4]: a.select_scatter(h, g, 2, 0))
rows("tril triu", lambda op: lambda h: op(h), lambda op: lambda h=[3, 4, 6]: op(h, 1))
row("diagonal", lambda h: a.diagonal(h, 0, 1, 2), lambda h=[3, 4, 4]: a.diagonal(h, 1, 2, 3))
row("pixel_shuffle", lambda h=[12, 3, 5]: a.pixel_shuffle(h, 2))
row("pixel_unshuffle", lambda h=[3, 4, 6]: a.pixel_unshuffle(h, 2))
row("view_as_complex", lambda h=[4, 6, 2]: a.view_as_complex(h), lambda h: a.view_as_complex(a.stack([h, h], -1)))
row("view_as_real", lambda h, g: a.view_as_real(a.complex(h, g)))
row("meshgrid", lambda h, p=(4,), q=(6,): a.meshgrid([p, q])[0] * h)
row(
    "meshgrid.indexing",
    lambda h, p=(6,), q=(4,): a.meshgrid.indexing([p, q], indexing="xy")[1] * h,
    lambda h, p=(4,), q=(6,): a.meshgrid.indexing([p, q], indexing="ij")[1] * h,
)

# Reductions

rows(
    "sum.dim_IntList mean.dim amax amin any.dims logsumexp nansum var.dim std.dim var.correction std.correction",
    lambda op: lambda h: op(h, [1]),
    lambda op: lambda h: op(h, [-1]),
    lambda op: lambda h: op(h, [1, 2]),
    lambda op: lambda h=[6, 6]: op(h, [1]),
)
rows("sum.dim_IntList mean.dim amax", lambda op: lambda h: op(h, [-1], True))
rows(
    "var_mean.dim var_mean.correction std_mean.correction",
    lambda op: lambda h: op(h, [1]),
    lambda op: lambda h: op(h, [-1]),
    lambda op: lambda h: op(h, [1, 2]),
)
rows(
    "sum mean prod any all max min var std median nanmedian argmax argmin",
    lambda op: lambda h: op(h),
    lambda op: lambda p=(6,): op(p),
)
rows("var std", lambda op: lambda h: op(h, False), lambda op: lambda p=(6,): op(p, False))
rows(
    "prod.dim_int any.dim all.dim argmax argmin max.dim min.dim median.dim",
    lambda op: lambda h: op(h, 1),
    lambda op: lambda h: op(h, -1, True),
    lambda op: lambda h=[6, 6]: op(h, 1),
)
row("mean.dim", lambda h, p=(4, 1): a.mean.dim(h * p, [2], True) * h)
row(
    "norm.ScalarOpt_dim",
    *[lambda h=[6, 6], d=d, p=p: a.norm.ScalarOpt_dim(h, p, [d]) for d in (1, 2) for p in (1, 2, 3.0)],
    lambda h: a.norm.ScalarOpt_dim(h, 2, [1], True),
)
row("norm.ScalarOpt_dim_dtype", lambda h: a.norm.ScalarOpt_dim_dtype(h, 2, [1], False, dtype=h.dtype))
row("norm.ScalarOpt_dtype", lambda p=(6,), h=[4, 6]: h * a.norm.ScalarOpt_dtype(p, 2, dtype=p.dtype))
row("count_nonzero", lambda h: a.count_nonzero(h.relu(), 1))
row("all.dims", lambda h: a.all.dims(h, [1, 2]))
row("norm.Scalar", lambda h: a.norm.Scalar(h), lambda p=(6,): a.norm.Scalar(p, 1), lambda p=(6, 6): a.norm.Scalar(p, 1))
row(
    "count_nonzero.dim_IntList",
    lambda h: a.count_nonzero.dim_IntList(h.relu(), [1]),
    lambda h: a.count_nonzero.dim_IntList(h.relu(), [1, 2]),
)
row(
    "linalg_vector_norm",
    *[lambda h, p=p: a.linalg_vector_norm(h, p, [1]) for p in (2, 1, 0, 3.0)],
    lambda h=[6, 6]: a.linalg_vector_norm(h, 1, [2]),
    lambda h: a.linalg_vector_norm(h, 2, [1, 2], True),
    lambda h: a.linalg_vector_norm(h),
)
rows(
    "softmax.int log_softmax.int",
    lambda op: lambda h: op(h, 1),
    lambda op: lambda h: op(h, -1),
    lambda op: lambda h: op(h, 1, torch.float64),
)
rows("_softmax _log_softmax", lambda op: lambda h: op(h, 1, False), lambda op: lambda h: op(h, -1, False))
row("glu", lambda h: a.glu(h), lambda h: a.glu(h, 1), lambda h, g: a.glu(a.cat([h, g], 1), 1))
rows("cumsum cumprod", lambda op: lambda h: op(h, 1), lambda op: lambda h: op(h, -1))
rows("sort argsort", lambda op: lambda h: op(h), lambda op: lambda h: op(h, 1, True))
rows(
    "sort.stable argsort.stable",
    lambda op: lambda h: op(h, stable=True),
    lambda op: lambda h: op(h, stable=True, dim=1),
)
row("topk", lambda h: a.topk(h, 2), lambda h: a.topk(h, 2, 1), lambda h: a.topk(h, 1, 1, False)[0])
row(
    "diff",
    lambda h: a.diff(h),
    lambda h: a.diff(h, 1, 1),
    lambda h: a.diff(h, 2, 1),
    lambda h, g=[1, 6]: a.diff(h, 1, 1, g),
    lambda h, g=[1, 6], p=(6,): a.diff(h, 1, 1, g * p.softmax(0)),
)

# Normalisations

row(
    "layer_norm",
    lambda h: a.layer_norm(h, [6]).relu(),
    lambda h, p=(6,), b=(6,): a.layer_norm(h, [6], p, b),
    lambda h, p=(4, 6): a.layer_norm(h, [4, 6], p),
)
row(
    "rms_norm",
    lambda h: a.rms_norm(h, [6]),
    lambda h, p=(6,): a.rms_norm(h, [6], p, 1e-3),
    lambda h, p=(4, 6): a.rms_norm(h, [4, 6], p),
)
row(
    "group_norm",
    lambda h, p=(4,), b=(4,): a.group_norm(h, 2, p, b),
    lambda h: a.group_norm(h, 4).relu(),
    lambda h: a.group_norm(h, 1).relu(),
    lambda h=[2, 6], g=[2, 6]: a.group_norm(a.cat([h, g], 1), 2).relu(),
    lambda h=[2, 3, 6]: a.group_norm(h.flatten(1, 2), 2).relu(),
)
rows(
    "batch_norm instance_norm",
    lambda op: lambda h, p=(4,), b=(4,), m=Positive(4), v=Positive(4): op(h, p, b, m, v, False, 0.1, 1e-5, False),
    lambda op: lambda h, p=(4,), b=(4,): op(h, p, b, None, None, True, 0.1, 1e-5, False),
    lambda op: lambda h: op(h, None, None, None, None, True, 0.1, 1e-5, False).relu(),
    lambda op: lambda h, m=Positive(4), v=Positive(4): op(h, None, None, m, v, False, 0.1, 1e-5, False),
)
row(
    "batch_norm",
    lambda h=[6], p=(6,), b=(6,), m=Positive(6), v=Positive(6): a.batch_norm(h, p, b, m, v, False, 0.1, 1e-5, False),
)
row("prelu", lambda h, p=(4,): a.prelu(h, p), lambda h, p=(1,): a.prelu(h, p), lambda h=[6], p=(6,): a.prelu(h, p))

# Lookups

i3 = Picks(6, 3)
wide = lambda i, k: i.unsqueeze(-1).expand(-1, -1, k)  # noqa: E731
row(
    "embedding", lambda p=(7, 6), i=Picks(7, 3): a.embedding(p, i), lambda p=(7, 6), i=Picks(7, 3): a.embedding(p, i, 2)
)
row(
    "index.Tensor",
    lambda p=(6, 4), i=i3: a.index.Tensor(p, [i]),
    lambda p=(4, 6), i=i3: a.index.Tensor(p, [None, i]).permute(1, 0, 2),
    lambda p=(5, 6), i=Picks(5, 3), j=i3: a.index.Tensor(p, [i, j]),
    lambda p=(5, 4, 6), i=Picks(5, 3), j=i3: a.index.Tensor(p, [i, None, j]),
    lambda p=(5, 6), i=Picks(5, 3): a.index.Tensor(p, [i - 5]),
)
row(
    "gather",
    lambda h, i=i3: a.gather(h, 2, i.unsqueeze(1).expand(-1, 4, -1)),
    lambda h, i=Picks(4, 3): a.gather(h, 1, wide(i, 6)),
    lambda h, i=Picks(4, 3): a.gather(h, 1, wide(i, 2)),
)
row(
    "index_select",
    lambda p=(7, 6), i=Picks(7, 1): a.index_select(p, 0, i[:, 0]),
    lambda p=(6, 7), i=Picks(7, 1): a.index_select(p, 1, i[:, 0]).mT,
)
row(
    "scatter.value",
    lambda h, i=Picks(4, 3): a.scatter.value(h, 1, wide(i, 6), 2.0),
    lambda h, i=Picks(4, 3): a.scatter.value(h, 1, wide(i, 2), 2.0),
    lambda h, i=i3: a.scatter.value(h, 2, i.unsqueeze(1).expand(-1, 4, -1), 0.0),
)
rows(
    "scatter_add scatter.src",
    lambda op: lambda h, g, i=Picks(4, 1): op(h, 1, wide(i, 6), g),
    lambda op: lambda h, g=[1, 6], i=Picks(4, 1): op(h, 1, wide(i, 6), g),
    lambda op: lambda h, g, i=Picks(4, 1): op(h, 1, wide(i, 3), g),
)
row("scatter_add", lambda h, g=[3, 6], i=Picks(4, 3): a.scatter_add(h, 1, wide(i, 6), g))
row(
    "scatter_reduce.two",
    *[
        lambda h, g=[3, 6], i=Picks(4, 3), r=r: a.scatter_reduce.two(h, 1, wide(i, 6), g, r)
        for r in ("sum", "amax", "mean")
    ],
)
fixed = lambda h, *units: torch.tensor(units)  # noqa: E731
row(
    "index_add",
    lambda h, g=[3, 6], i=Picks(4, 3): a.index_add(h, 1, i[0], g),
    lambda h, g=[3, 6]: a.index_add(h, 1, fixed(h, 0, 2, 1), g),
    lambda h, g=[4, 6]: a.index_add(h, 1, torch.arange(4), g, alpha=2),
)
row(
    "index_copy",
    lambda h, g=[3, 6]: a.index_copy(h, 1, fixed(h, 0, 2, 1), g),
    lambda h, g=[4, 6]: a.index_copy(h, 1, torch.arange(4), g),
)
row(
    "index_put",
    lambda h, g=[3, 6]: a.index_put(h, [None, fixed(h, 0, 2, 1)], g),
    lambda h, g=[4, 6]: a.index_put(h, [None, torch.arange(4)], g),
    lambda h, s=(6,), i=Picks(4, 3): a.index_put(h, [None, i[0]], s),
)
row("one_hot", lambda i=i3: a.one_hot(i, 6), lambda i=i3, p=(6,): a.one_hot(i, 6) * p)
row("bucketize.Tensor", lambda h, p=(5,): a.bucketize.Tensor(h, p.cumsum(0)))
row(
    "searchsorted.Tensor",
    lambda h, p=(5,): a.searchsorted.Tensor(p.cumsum(0), h),
    lambda h, g=[4, 5]: a.searchsorted.Tensor(g.abs().cumsum(2), h),
)

# Windows over space

rows("max_pool1d avg_pool1d", lambda op: lambda h: op(h, [2]), lambda op: lambda h: op(h, [3], [1], [1]))
rows(
    "max_pool2d avg_pool2d max_pool2d_with_indices",
    lambda op: lambda h=[4, 6, 4]: op(h, [2, 2]),
    lambda op: lambda h=[4, 6, 4]: op(h, [3, 1], [1, 1], [1, 0]),
    lambda op: lambda h: op(h, [2, 2]),
)
rows("max_pool3d avg_pool3d", lambda op: lambda h=[4, 2, 6, 4]: op(h, [2, 2, 2]))
row(
    "adaptive_avg_pool1d",
    lambda h: a.adaptive_avg_pool1d(h, [2]),
    lambda h: a.adaptive_avg_pool1d(h, [1]),
    lambda h: a.adaptive_avg_pool1d(h, [6]),
)
row("adaptive_max_pool1d", lambda h: a.adaptive_max_pool1d(h, [2]), lambda h: a.adaptive_max_pool1d(h, [1])[0])
rows(
    "adaptive_avg_pool2d adaptive_max_pool2d",
    lambda op: lambda h=[4, 6, 4]: op(h, [1, 1]),
    lambda op: lambda h=[4, 6, 4]: op(h, [6, 2]),
)
row("adaptive_avg_pool3d", lambda h=[4, 2, 6, 4]: a.adaptive_avg_pool3d(h, [1, 2, 2]))
row(
    "upsample_nearest1d.vec",
    lambda h: a.upsample_nearest1d.vec(h, [9], None),
    lambda h: a.upsample_nearest1d.vec(h, None, [2.0]),
)
row("upsample_linear1d.vec", lambda h: a.upsample_linear1d.vec(h, [9], False, None))
row("upsample_nearest2d.vec", lambda h=[4, 3, 2]: a.upsample_nearest2d.vec(h, [5, 4], None))
rows(
    "upsample_bilinear2d.vec upsample_bicubic2d.vec _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec",
    lambda op: lambda h=[4, 3, 2]: op(h, [5, 4], False, None),
)
row("upsample_nearest2d", lambda h=[4, 3, 2]: a.upsample_nearest2d(h, [5, 4]))
rows("upsample_bilinear2d upsample_bicubic2d", lambda op: lambda h=[4, 3, 2]: op(h, [5, 4], True))
row("upsample_nearest3d.vec", lambda h=[4, 3, 2, 2]: a.upsample_nearest3d.vec(h, [5, 4, 2], None))
row("upsample_trilinear3d.vec", lambda h=[4, 3, 2, 2]: a.upsample_trilinear3d.vec(h, [5, 4, 2], False, None))
row("grid_sampler", lambda h=[4, 3, 2], g=[5, 6, 2]: a.grid_sampler(h, g, 0, 0, False))
row("im2col", lambda h=[4, 3, 5]: a.im2col(h, [2, 2], [1, 1], [0, 0], [1, 1]))
row("col2im", lambda h=[8, 6]: a.col2im(h, [3, 4], [2, 2], [1, 1], [0, 0], [1, 1]))
row("unfold", lambda h: a.unfold(h, 1, 2, 1))
rows("fft_fft fft_fft2", lambda op: lambda h: op(h))
rows("fft_rfft fft_irfft", lambda op: lambda h: op(h))
row("nonzero_static", lambda h=[4]: a.nonzero_static(h, size=3).float().sum() * h)
row("cdist", lambda h, g=[3, 6]: a.cdist(h, g))
row("histc", lambda p=(6,), h=[5]: h * a.histc(p, 5, -1, 1))

# Tensors from nothing

row("arange", lambda h: h * a.arange(6), lambda h: h * a.arange(5.5))
row("arange.start", lambda h: h * a.arange.start(2, 8), lambda h: h * a.arange.start(-2, 3.5))
row("arange.start_step", lambda h: h * a.arange.start_step(0, 12, 2))
row("linspace", lambda h: h * a.linspace(0, 1, 6))
rows("zeros ones", lambda op: lambda h: h + op([4, 6]), lambda op: lambda h: h + op([6]))
row("full", lambda h: h * a.full([4, 6], 2.0), lambda h: h * a.full([], 2.0))
rows("empty.memory_format rand randn", lambda op: lambda h: a.where.self(h == h, h, op([4, 6])))
row("randint", lambda h: a.where.self(h == h, h, a.randint(9, [4, 6])))
row("randint.low", lambda h: a.where.self(h == h, h, a.randint.low(2, 9, [4, 6])))
row("eye", lambda h=[6, 6]: h * a.eye(6))
rows("tril_indices triu_indices", lambda op: lambda h=[2, 6]: h * op(3, 3))
row("scalar_tensor", lambda h: h * a.scalar_tensor(2.0))
rows(
    "new_zeros new_ones new_empty",
    lambda op: lambda h: a.where.self(h == h, h, op(h, [4, 6])),
    lambda op: lambda h, g: a.where.self(g == g, g, op(h, [2, 4, 6])[0]),
)
row("new_full", lambda h: h + a.new_full(h, [6], 2.0))
row("hann_window", lambda h: h * a.hann_window(6))

# Losses

row(
    "cross_entropy_loss",
    lambda h, i=Picks(4, 5): a.cross_entropy_loss(h[:, :, :5], i, None, 0),
    lambda h=[4], i=Picks(4, 1): a.cross_entropy_loss(h, i[:, 0]),
    lambda h, g: a.cross_entropy_loss(h, g.softmax(1)),
    lambda h=[4], i=Picks(4, 1), p=Positive(4): a.cross_entropy_loss(h, i[:, 0], p),
    lambda h=[4], i=Picks(4, 1): a.cross_entropy_loss(h, i[:, 0], None, 1, -100, 0.1),
)
row(
    "nll_loss",
    lambda h=[4], i=Picks(4, 1): a.nll_loss(h, i[:, 0]),
    lambda h=[4], i=Picks(4, 1), p=Positive(4): a.nll_loss(h, i[:, 0], p),
)
row("nll_loss_nd", lambda h, i=Picks(4, 5): a.nll_loss_nd(h[:, :, :5], i))
rows(
    "mse_loss l1_loss smooth_l1_loss huber_loss", lambda op: lambda h, g: op(h, g), lambda op: lambda h, g: op(h, g, 0)
)
row(
    "binary_cross_entropy",
    lambda h, g: a.binary_cross_entropy(h.sigmoid(), g.sigmoid()),
    lambda h, g, p=Positive(6): a.binary_cross_entropy(h.sigmoid(), g.sigmoid(), p),
)
row(
    "binary_cross_entropy_with_logits",
    lambda h, g: a.binary_cross_entropy_with_logits(h, g.sigmoid()),
    lambda h, g, p=Positive(6), q=Positive(6): a.binary_cross_entropy_with_logits(h, g.sigmoid(), p, q),
)
row("kl_div", lambda h, g: a.kl_div(h, g.softmax(1)), lambda h, g: a.kl_div(h, g, 0, log_target=True))
