"""factorize: two factors of rank r in place of a weight.

Statement. Let W be a stored matrix, m x n, that activations are multiplied by, whose rows are looked up, or that a
convolution slides over space. With W = U V, U of m x r and V of r x n, a product with W is one with V after one with U
(or the other way round), with nothing between; a bias stays on the outer one. Otherwise every site where W was used is
off by (W - U V) times what it reads. By its singular values cut at r, U V is the nearest there is: the spectral norm of
W - U V is the next singular value.

Proof. Matrix products are associative, and convolutions, which are matrix products at every position of space, too;
what is nearest is the theorem of Eckart, Young and Mirsky. `verify` multiplies the factors again and compares them with
W: exact where they are W, else within the spectral norm of the difference at each site.

Reference. Kamalakara et al., Exploring Low Rank Training of Deep Neural Networks (arXiv 2209.13569): spectral starts,
the directions alone (here at their scale), embeddings and heads left alone; Khodak et al. (arXiv 2105.01029): how a
convolution is cut. Wang et al., SVD-LLM (arXiv 2403.07378): whitening by data. Halko et al. (arXiv 0909.4061): random
projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

from torch import finfo

from graphgrow.errors import OptionError, Refusal
from graphgrow.pipeline import Pass, matching, option
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.factorize import Pair
from graphgrow.rewrite.factors import Spectrum, Weighting, allocate, decompose, drawn, refined, sketch
from graphgrow.rewrite.moments import moments
from graphgrow.rewrite.products import Weight

AUTO = "auto"
FRACTION = 0.25  # at which square weights still get smaller


@dataclass(frozen=True, kw_only=True)
class Factorize(Pass):
    """Two factors in place of weights: linears, embeddings, convolutions; within the norm of what is cut off."""

    name: ClassVar[str] = "factorize"
    claim: ClassVar[Literal["Within"]] = "Within"

    at: str = option(
        "name, glob or re:EXPRESSION of the weights; auto: all but embeddings and heads, which have to be named",
        default=AUTO,
    )
    rank: int | None = option("rank of the factors", default=None)
    fraction: float | None = option(
        f"rank as a part of the smaller dimension ({FRACTION} if nothing is given)", default=None
    )
    energy: float | None = option("share of the squared singular values of each weight to keep", default=None)
    budget: float | None = option(
        "share of the numbers that all chosen weights hold; ranks are shared out by the spectra", default=None
    )
    init: Literal["spectral", "ones", "random"] = option(
        "factors: singular vectors and values; the vectors, all with the root mean square of the values; Gaussian",
        default="spectral",
    )
    by: Literal["weights", "activations"] = option(
        "what is to be near: the weights, or what they make of --data", default="weights"
    )
    method: Literal["svd", "randomised"] = option(
        "all singular values, or the largest by random projections, faster and nearly as near", default="svd"
    )
    conv: Literal["pointwise", "separable"] = option(
        "a convolution becomes 1 x 1 after k x k, or k x 1 after 1 x k", default="pointwise"
    )
    larger: bool = option("also where factors hold as many numbers as the weight, or more", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {"rank": self.rank, "fraction": self.fraction, "energy": self.energy, "budget": self.budget}
        given = [name for name, value in sizes.items() if value is not None]
        if len(given) > 1:
            raise OptionError(found=self.spec, fix=f"give one of {', '.join(given)}")
        if self.rank is not None and self.rank < 1:
            raise OptionError(found=f"{self.name}:rank={self.rank}", fix="give a positive rank")
        for name in ("fraction", "energy", "budget"):
            value = sizes[name]
            if value is not None and not 0 < value <= 1:
                raise OptionError(found=f"{self.name}:{name}={value}", fix=f"give a {name} above 0 and at most 1")
        by_spectra = self.energy is not None or self.budget is not None
        if by_spectra and (self.method == "randomised" or self.init == "random"):
            fix = "give rank or fraction: energy and budget need all singular values"
            raise OptionError(found=self.spec, fix=fix)
        if self.by == "activations" and (self.method == "randomised" or self.init == "random"):
            raise OptionError(found=self.spec, fix="choose method=svd and another init to go by activations")
        if self.budget is not None and self.larger:
            raise OptionError(found=self.spec, fix="leave out larger: a budget is spent on what gets smaller")

    def rewrite(self, rewriter: Rewriter) -> None:
        if self.by == "activations" and not rewriter.data:
            raise OptionError(found=f"{self.spec} without data", fix="give batches of inputs: --data FILE, or data=[…]")
        left: dict[str, str] = {}
        chosen = self._chosen(rewriter, left)
        data = self._weightings(rewriter, chosen, left)
        chosen = {name: weight for name, weight in chosen.items() if name not in left}
        share = self._factors if self.budget is None else self._shared_out
        pairs = share(rewriter, chosen, data, left)
        if not pairs:
            name, reason = next(iter(left.items()), ("the graph", "no parameter has two dimensions"))
            fix = "choose other weights with at=NAME, or a smaller rank"
            raise Refusal(found=f"no weight that two factors could stand for: {reason}", where=name, fix=fix)
        for reason in dict.fromkeys(left.values()):
            names = [name for name, why in left.items() if why == reason]
            rewriter.leave(names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""), reason)
        rewriter.factorize({name: (chosen[name], pair) for name, pair in pairs.items()})

    def _chosen(self, rewriter: Rewriter, left: dict[str, str]) -> dict[str, Weight]:
        """The weights that are asked for. Those that can't come apart, or would not get smaller, go to `left`, with the
        reason."""
        known = rewriter.weights(self.conv)
        names = [*known] if self.at == AUTO else matching([*known], self.at)
        if not names and self.at != AUTO:
            raise OptionError.unknown(f"weight for {self.name}", self.at, known)
        chosen: dict[str, Weight] = {}
        for name in names:
            weight = known[name]
            if isinstance(weight, str):
                left[name] = weight
            elif weight.outside and self.at == AUTO:
                left[name] = f"{weight.outside}: name it, at=NAME, to have it factorised"
            elif not self._pays(weight, self._rank(weight) or 1):
                left[name] = _not_smaller(weight, self._rank(weight) or 1)
            else:
                chosen[name] = weight
        return chosen

    def _rank(self, weight: Weight) -> int | None:
        """The rank that is asked for; None where the spectrum tells."""
        smaller = min(weight.rows, weight.columns)
        if self.rank is not None:
            return min(self.rank, smaller)
        if self.energy is not None or self.budget is not None:
            return None
        return max(1, round(smaller * (self.fraction or FRACTION)))

    def _pays(self, weight: Weight, rank: int) -> bool:
        return self.larger or rank <= weight.most

    def _weightings(
        self, rewriter: Rewriter, chosen: Mapping[str, Weight], left: dict[str, str]
    ) -> dict[str, Weighting]:
        """What each weight is applied to, where that is to tell what is near."""
        if self.by == "weights":
            return {}
        found = moments(rewriter.program, list(chosen.values()), rewriter.data)
        left |= {name: reason for name, reason in found.items() if isinstance(reason, str)}
        return {name: data for name, data in found.items() if isinstance(data, Weighting)}

    def _factors(
        self, rewriter: Rewriter, chosen: Mapping[str, Weight], data: Mapping[str, Weighting], left: dict[str, str]
    ) -> dict[str, Pair]:
        """The factors of each weight by itself."""
        pairs, errors = dict[str, Pair](), dict[str, float]()
        for name, weight in chosen.items():
            tensor, rank = rewriter.program.tensors[name], self._rank(weight)
            matrix = weight.matrix(tensor)
            if not matrix.isfinite().all():
                left[name] = "it holds values that are not finite"
            elif self.init == "random" and rank:
                pairs[name] = drawn(matrix, rank, self.seed, name)
            elif self.method == "randomised" and rank:
                spectrum = sketch(matrix, rank, self.seed, name)
                pairs[name], errors[name] = spectrum.factors(rank, self.init), spectrum.lost(rank)
            else:
                whole = rank == min(matrix.shape) or self.energy == 1  # then the product is to be the weight
                most = None if self.larger else weight.most + 1
                matrix = matrix.double() if whole else matrix
                spectrum = decompose(matrix, most, data.get(name))
                rank = rank or min(spectrum.rank(self.energy or 1.0, finfo(tensor.dtype).eps), *matrix.shape)
                if not self._pays(weight, rank):
                    left[name] = _not_smaller(weight, rank)
                    continue
                pairs[name] = spectrum.factors(rank, self.init)
                if whole and self.init == "spectral":
                    pairs[name] = refined(matrix, *pairs[name])
        if errors:
            worst = max(errors, key=errors.__getitem__)
            rewriter.notes.append(
                f"random projections: what they leave out is at most {errors[worst]:.3g} of a weight's norm ({worst})"
            )
        return pairs

    def _shared_out(
        self, rewriter: Rewriter, chosen: Mapping[str, Weight], data: Mapping[str, Weighting], left: dict[str, str]
    ) -> dict[str, Pair]:
        """The factors of all weights, of ranks that together keep to the budget."""
        tensors, spectra = rewriter.program.tensors, dict[str, Spectrum]()
        for name, weight in chosen.items():
            if tensors[name].isfinite().all():
                spectra[name] = decompose(weight.matrix(tensors[name]), weight.most, data.get(name))
            else:
                left[name] = "it holds values that are not finite"
        size = sum(tensors[name].numel() for name in spectra)
        ranks = allocate(spectra, int(size * (self.budget or 1.0)))
        if isinstance(ranks, int):
            fix = f"give at least {ceil(1000 * ranks / size) / 1000}"
            raise Refusal(found=f"{self.spec}: rank 1 everywhere takes {ranks:,} of {size:,} numbers", fix=fix)
        left |= dict.fromkeys((name for name, rank in ranks.items() if rank is None), "its numbers are worth keeping")
        return {name: spectra[name].factors(rank, self.init) for name, rank in ranks.items() if rank is not None}


def _not_smaller(weight: Weight, rank: int) -> str:
    return f"{weight.rows} x {weight.columns} at rank {rank} would hold as many numbers or more (at most {weight.most})"
