"""The operator table: one row per operator that a graph may hold.

A row's `kind` names the rule that infers its axes (`axes.rules`) and the one that proves facts about it
(`prove.rows`). An operator without a row is refused in files and freezes its axes in analyses.

`zero` says when a pointwise operator gives zero: "all" operands zero, "any" operand zero, the "first" operand zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Zero = Literal["", "all", "any", "first"]


@dataclass(frozen=True, slots=True)
class Row:
    """How one operator is understood. `signature` is an einsum over its first operands for contractions."""

    kind: str
    signature: str = ""
    zero: Zero = ""


TABLE: dict[str, Row] = {"input": Row("input"), "parameter": Row("parameter"), "getitem": Row("getitem")}
TABLE["by_mode"] = Row("pointwise", zero="all")


# The argument in which an operator has the one dimension that it works along, by kind.
DIMENSION = {"split": 2, "slice": 1, "select": 1, "glu": 1}


def known(op: str) -> bool:
    """Whether a graph may hold this operator."""
    return op in TABLE


def kind(op: str) -> str:
    """The operator's kind, `unknown` without a row."""
    row = TABLE.get(op)
    return row.kind if row else "unknown"


def _rows(kind: str, names: str | Iterable[str], signature: str = "", zero: Zero = "") -> None:
    for name in names.split() if isinstance(names, str) else names:
        full = name if "." in name else f"{name}.default"
        assert f"aten.{full}" not in TABLE, f"two rows for {full}"
        TABLE[f"aten.{full}"] = Row(kind, signature, zero)


# Pointwise operators, by what they make of zero.
_rows(
    "pointwise",
    """abs neg relu relu6 gelu silu mish tanh sin sinh asinh atan erf sqrt sign floor ceil round trunc expm1 log1p
    tan leaky_relu elu selu celu hardtanh hardswish softshrink hardshrink to.dtype detach
    clone dropout feature_dropout alpha_dropout rrelu square add.Tensor sub.Tensor rsub.Tensor add.Scalar
    sub.Scalar rsub.Scalar maximum minimum max.other min.other nan_to_num conj _conj real imag
    conj_physical angle sgn positive isnan isinf logical_or bitwise_or.Tensor bitwise_xor.Tensor __or__.Tensor
    __xor__.Tensor logical_xor lerp.Scalar""",
    zero="all",
)
_rows("pointwise", "mul.Tensor mul.Scalar logical_and bitwise_and.Tensor __and__.Tensor", zero="any")
_rows(
    "pointwise",
    """div.Tensor div.Scalar div.Tensor_mode floor_divide remainder.Scalar remainder.Tensor fmod.Scalar fmod.Tensor
    floor_divide.Scalar div.Scalar_mode __lshift__.Scalar __rshift__.Scalar""",
    zero="first",
)
_rows("power", "pow.Tensor_Scalar")
_rows(
    "pointwise",
    """pow.Tensor_Tensor pow.Scalar exp exp2 log log2 log10 cos cosh acos acosh asin atanh sigmoid hardsigmoid
    softplus rsqrt reciprocal erfc erfinv logit clamp clamp.Tensor clamp_min clamp_max clamp_min.Tensor
    clamp_max.Tensor eq.Scalar eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor gt.Scalar
    gt.Tensor ge.Scalar ge.Tensor logical_not bitwise_not where.self where.ScalarOther where.ScalarSelf
    where.Scalar masked_fill.Scalar masked_fill.Tensor threshold log_sigmoid atan2 hypot xlogy.Tensor polar complex
    bernoulli.p bernoulli isfinite lerp.Tensor addcmul addcdiv logaddexp""",
)
_rows("like", "zeros_like ones_like full_like empty_like rand_like randn_like uniform exponential normal_functional")

# Contractions: an einsum over the operands, then a bias that is broadcast.
_rows("contraction", "linear", "*i, oi -> *o")
_rows("contraction", "mm", "ni, io -> no")
_rows("contraction", "bmm", "bni, bio -> bno")
_rows("contraction", "mv", "ni, i -> n")
_rows("contraction", "dot vdot", "i, i ->")
_rows("contraction", "outer", "i, o -> io")
_rows("contraction", "bilinear", "*i, oij, *j -> *o")
_rows("contraction", "addmm", "ni, io -> no")
_rows("contraction", "baddbmm", "bni, bio -> bno")
_rows("contraction", "addmv", "ni, i -> n")
_rows("contraction", "matmul")
_rows("contraction", "einsum")
_rows("attention", "scaled_dot_product_attention")
_rows("convolution", "conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding")
_rows("convolution", "conv_transpose1d conv_transpose2d.input conv_transpose3d.input")

# Layout: elements move and nothing is computed.
_rows("reshape", "reshape")
_rows("permute", "permute")
_rows("unsqueeze", "unsqueeze")
_rows("expand", "expand")
_rows("repeat", "repeat tile")
_rows("repeat_interleave", "repeat_interleave.self_int")
_rows("cat", "cat concat concatenate")
_rows("stack", "stack")
_rows("split", "split_with_sizes")
_rows("slice", "slice.Tensor")
_rows("select", "select.int")
_rows("unbind", "unbind.int")
_rows("pad", "pad constant_pad_nd")
_rows("flip", "flip")
_rows("roll", "roll")
_rows("slice_scatter", "slice_scatter")
_rows("select_scatter", "select_scatter")
_rows("triangle", "tril triu")
_rows("diagonal", "diagonal")
_rows("pixel_shuffle", "pixel_shuffle")
_rows("pixel_unshuffle", "pixel_unshuffle")
_rows("view_as_complex", "view_as_complex")
_rows("view_as_real", "view_as_real")
_rows("meshgrid", "meshgrid meshgrid.indexing")

# Reductions over dimensions, and what works along one dimension and keeps it. Dimensions are the second argument, of a
# `norm_reduction` the third: an order or a correction stands before them.
_rows("sum", "sum.dim_IntList sum nansum", zero="all")
_rows("mean", "mean.dim mean")
_rows(
    "reduction",
    """amax amin prod.dim_int prod any any.dim any.dims all all.dim all.dims var.dim var.correction std.dim
    std.correction logsumexp max min argmax argmin count_nonzero.dim_IntList count_nonzero median nanmedian""",
)
_rows(
    "norm_reduction",
    """linalg_vector_norm norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype norm.Scalar var std""",
)
_rows("reduction2", "max.dim min.dim var_mean.correction std_mean.correction var_mean.dim median.dim")
_rows("along", "softmax.int log_softmax.int _softmax _log_softmax")
_rows("glu", "glu")
_rows("ordered", "cumsum cumprod")
_rows("sort", "sort sort.stable argsort argsort.stable")
_rows("topk", "topk")
_rows("diff", "diff")

# Normalisations.
_rows("layer_norm", "layer_norm rms_norm")
_rows("group_norm", "group_norm")
_rows("batch_norm", "batch_norm instance_norm")
_rows("prelu", "prelu")

# Lookups by index, and their reverse.
_rows("embedding", "embedding")
_rows("index", "index.Tensor")
_rows("gather", "gather")
_rows("index_select", "index_select")
_rows("scatter", "scatter.value scatter.src scatter_add scatter_reduce.two")
_rows("index_add", "index_add index_copy")
_rows("index_put", "index_put")
_rows("one_hot", "one_hot")
_rows("searchsorted", "bucketize.Tensor searchsorted.Tensor")

# Windows that slide over space: channels stay, space becomes new axes.
_rows(
    "pool",
    """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d upsample_nearest1d.vec
    upsample_nearest2d.vec upsample_nearest3d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec
    upsample_linear1d.vec upsample_trilinear3d.vec upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
    _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec grid_sampler max_pool2d_with_indices""",
)
_rows(
    "opaque",
    """im2col col2im unfold nonzero_static cdist histc fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2
    fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn stft istft lstm.input gru.input rnn_tanh.input rnn_relu.input
    lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell cosine_similarity embedding_bag.padding_idx affine_grid_generator""",
)

# The one operator that stays in place: a buffer that counts batches.
_rows("counter", "add_.Tensor")

# Tensors from nothing.
_rows("arange", "arange arange.start arange.start_step linspace")
_rows(
    "factory",
    """zeros ones full empty.memory_format rand randn randint randint.low eye tril_indices triu_indices
    scalar_tensor new_zeros new_ones new_full new_empty hann_window""",
)

# Losses: a number, or one per row.
_rows(
    "loss",
    """cross_entropy_loss nll_loss nll_loss_nd mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy
    binary_cross_entropy_with_logits kl_div""",
)

# The number of operands of each contraction's einsum, and where the first one stands (a bias may come before).
FIRST_OPERAND = {"aten.addmm.default": 1, "aten.baddbmm.default": 1, "aten.addmv.default": 1}
