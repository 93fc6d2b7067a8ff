"""supar: the parameterization in which learning rates carry over from one width, and one density, to another.

Statement. Let m be by how much a weight's fan-in exceeds that of a base model, and rho by how much its density does.
Sums of embeddings are multiplied by alpha_in, outputs by alpha_out / (m rho), attention's scores by sqrt(base) / keys;
hidden weights start with a variance and (under Adam) learn at a rate that is 1/(m rho) of the base model's. Then what a
layer adds, and by how much a step changes it, depends neither on width nor on density. With form=reparameterise the
weights there are take the inverse of what is multiplied, and every output is what it was: how it is trained changes,
not what it computes. With density 1 this is muP.

Proof. Of the reparameterisation: a multiplier c before a linear map whose weight is divided by c leaves what it makes.
On the graph at hand `prove` finds the weights that take the inverse (heads, keys, embeddings; the gain before a tied
head) and shows that every output is the same. Of the rates: activations, gradients and updates keep their size, as a
sum of d rho independent terms has the variance d rho var(w), and one of d rho aligned steps the size d rho times the
rate.

Reference. Dey, Bergsma & Hestness, Sparse maximal update parameterization (arXiv 2405.15743), table 1; Yang et al.,
Tensor Programs V (arXiv 2203.03466), table 8, for SGD and for all that is no hidden weight. Not in the paper: fan-ins
of each matrix by itself (grouped keys, any ratio of MLP to stream); weight decay, here multiplied by the inverse of the
rate, so that their product stays; eps, multiplied by 1/m for hidden weights, as their gradients are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow.axes import Atom, Axes
from graphgrow.certificate import Claim
from graphgrow.errors import OptionError
from graphgrow.pipeline import Pass, option, select
from graphgrow.rewrite import Parameterization, Rewriter


@dataclass(frozen=True, kw_only=True)
class Supar(Pass):
    """muP for any width and density: multipliers, training recipe and, if asked for, fresh weights."""

    name: ClassVar[str] = "supar"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    base: tuple[str, ...] = option(
        "sizes of widths in the base model, by role or axis: hidden=256+mlp=1024", default=()
    )
    density: float = option("part of each masked weight that is kept in the base model", default=1.0)
    form: Literal["reparameterise", "fresh"] = option(
        "reparameterise keeps the function; fresh starts with new random weights (masks stay)", default="reparameterise"
    )
    alpha_in: float | None = option("multiplier of the sum of embeddings (none: as it is)", default=None)
    alpha_out: float = option("multiplier of outputs in the base model", default=1.0)
    attention: bool = option(
        "scores are divided by the size of keys, not its root, where `base` has one for it", default=True
    )
    optimizer: Literal["adamw", "adam", "sgd"] = option("which rules for learning rates", default="adamw")
    decay: Literal["keep", "scale"] = option(
        "keep: rate times weight decay as in the base model; scale: less with smaller rates", default="keep"
    )
    sigma: float | None = option(
        "of form=fresh: deviation of weights in the base model (none: what each weight has now)", default=None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in self.base:
            name, _, size = item.rpartition("=")
            if not name or not size.isdecimal() or not int(size):
                raise OptionError(found=f"{self.name}:base={item}", fix="write AXIS=SIZE, joined by +: hidden=256")
        if not 0 < self.density <= 1:
            raise OptionError(found=f"{self.name}:density={self.density}", fix="give a density above 0 and at most 1")
        for what, value in (("alpha_in", self.alpha_in), ("alpha_out", self.alpha_out), ("sigma", self.sigma)):
            if value is not None and not 0 < value < float("inf"):
                raise OptionError(found=f"{self.name}:{what}={value}", fix="give a positive number")
        if self.sigma is not None and self.form != "fresh":
            raise OptionError(found=f"{self.spec}: weights that are kept", fix="give sigma with form=fresh only")

    @property
    def claims(self) -> Claim:
        return "Exact" if self.form == "reparameterise" else "Changes"

    def rewrite(self, rewriter: Rewriter) -> None:
        wanted = Parameterization(
            self.sizes(rewriter.program.axes), self.density, self.alpha_in, self.alpha_out, self.attention,
            self.optimizer, self.decay == "keep",
        )  # fmt: skip
        if self.form == "fresh":
            rewriter.restart(wanted, self.sigma)
        else:
            rewriter.reparameterize(wanted)

    def sizes(self, axes: Axes) -> Mapping[Atom, int]:
        """The base size of every axis that `base` names."""
        if not self.base:
            raise OptionError(found=f"{self.name} without base sizes", fix="name widths: base=hidden=256+mlp=1024")
        found: dict[Atom, int] = {}
        for item in self.base:
            pattern, _, size = item.rpartition("=")
            for axis in select(axes, pattern, self.name):
                if found.setdefault(axis.atom, int(size)) != int(size):
                    fix = "name each axis once"
                    raise OptionError(found=f"two base sizes for {axis.name}", where=self.spec, fix=fix)
        return found
