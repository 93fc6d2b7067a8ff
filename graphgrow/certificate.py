"""What a rewrite is sure of: the data of a certificate. Only `verify` makes one."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Fill = Literal["zero", "mean", "copy", "share", "positive", "scaled", "constant"]
Claim = Literal["Exact", "Within", "Changes"]
WHOLE = -2


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Constraint(_Value):
    """One block of a parameter and what it must hold for the proof to go through."""

    parameter: str
    dim: int  # the parameter's dimension that grew; -1 for its old block, WHOLE for all of a new parameter
    axis: str  # the axis, by its name for people
    fill: Fill
    text: str = ""  # the same with its factor: "0.816497 times the same"
    reason: str = ""  # the operator that needs it
    removed: bool = False  # of units that the old program had

    @property
    def block(self) -> str:
        """Where in the parameter, for people."""
        if self.dim == WHOLE:
            return "all"
        if self.removed:
            return f"the removed units of dimension {self.dim}" if self.dim >= 0 else "the others"
        return f"the new units of dimension {self.dim}" if self.dim >= 0 else "the old units"

    def __str__(self) -> str:
        return f"{self.text or self.fill} in {self.block} of {self.parameter}"


class Rescaled(_Value):
    """A number in the graph that has another value than before: a norm's eps, attention's scale."""

    node: str
    place: str  # operator and source line
    old: float
    new: float

    def __str__(self) -> str:
        return f"{self.old:g} becomes {self.new:g} in {self.place}"


class Growth(_Value):
    """One axis and its number of units before and after."""

    axis: str
    old: int
    new: int


class Step(_Value):
    """One line of a derivation: an operator, what it reads and what follows; `times` in as many layers."""

    place: str  # the operator and its source line
    reads: tuple[str, ...]
    gives: str
    times: int = 1

    def __str__(self) -> str:
        many = f" (x{self.times})" if self.times > 1 else ""
        read = "; ".join(self.reads)
        return f"{self.place}{many}: {read}{' => ' if read else ''}{self.gives}"


class Proof(_Value):
    """The derivation on the graph: every output is the same whatever the free blocks hold."""

    holds: bool
    why: str  # where it fails, or how many nodes it went through
    constraints: tuple[Constraint, ...] = ()  # minimal: the proof fails without any one of them
    numbers: tuple[Rescaled, ...] = ()
    steps: tuple[Step, ...] = ()  # the derivation: what is new or has another factor, from the parameters to the end


class Trial(_Value):
    """One comparison of old and new on random inputs. Deviations are relative to the largest value of the old outputs
    (or gradients); `rounding32` is how far the old program itself is off in float32."""

    sizes: str  # of the dynamic dimensions: "batch=1, sequence=5"
    output64: float
    output32: float
    gradient64: float
    rounding32: float
    tolerance64: float


class Test(_Value):
    """The numeric equivalence test. `reduced` says that it ran on both programs with their axes shrunk alike."""

    holds: bool
    trials: tuple[Trial, ...] = ()
    reduced: bool = False
    why: str = ""
    seed: int = 0

    @property
    def worst(self) -> Trial | None:
        """The trial with the largest deviation in float64."""
        return max(self.trials, key=lambda trial: max(trial.output64, trial.gradient64), default=None)


class Measured(_Value):
    """How much outputs have changed, in the type of the weights, over all floating outputs: the norm of the difference
    over the norm of the old ones, and the largest difference over the largest old value."""

    norm: float
    largest: float
    inputs: str  # on what: "3 random inputs"

    def __str__(self) -> str:
        most = f"at most {self.largest:.2g} of the largest value"
        return f"outputs change by {self.norm:.2g} of their norm, {most}, on {self.inputs}"


class Bound(_Value):
    """By how much one weight differs from what it was: the largest singular value of the difference, as a matrix, is at
    most `value`; its Frobenius norm is `share` of the weight's. Nothing is said of outputs."""

    at: str  # the weight
    value: float
    share: float

    def __str__(self) -> str:
        return f"{self.at} within {self.value:.3g} (its norm changes by {self.share:.2g})"


class Run(_Value):
    """Positions along one dimension: `length` from `to` on come from those from `start` on."""

    to: int
    start: int
    length: int


class Move(_Value):
    """Where values of an old parameter went: a block of a new one (all of it without `runs`) holds `scale` times what
    they were, or shares that add up to that, as do all `copies` of it together. `fresh`: it has nothing of the old one,
    but belongs where that does. `stacked`: the new one has a first dimension more, and the old values stand at every
    place of it.
    """

    old: str
    new: str
    shape: tuple[int, ...]  # of the new parameter
    scale: float = 1.0
    copies: int = 1
    runs: tuple[tuple[Run, ...], ...] = ()  # for each dimension
    fresh: bool = False
    stacked: bool = False


class Certificate(_Value):
    """What one pass did to a program, what it claims, and the evidence: proved, tested or measured.

    `claim` is `Exact` (same outputs for every input, in real arithmetic), `Within` or `Changes`.
    """

    spec: str  # the pass with its options, as the command line takes them
    old: str  # digests of both programs
    new: str
    claim: Claim
    growth: tuple[Growth, ...] = ()
    proof: Proof | None = None
    test: Test | None = None
    measured: Measured | None = None  # where the function is another one
    bounds: tuple[Bound, ...] = ()  # of weights that are other ones, where all else is proved to be the same
    extended: tuple[str, ...] = ()  # outputs with other units than before: the claim is about those that both have
    moves: tuple[Move, ...] = ()  # of parameters that have another name, shape or factor than before
    removed: tuple[str, ...] = ()  # parameters of which nothing is left
    notes: tuple[str, ...] = ()  # what the pass left alone, and why
    version: str = ""

    @property
    def holds(self) -> bool:
        """Whether the claim is proved or tested, and nothing speaks against it; or, where none is made, how much
        changes is measured."""
        if self.claim != "Exact" and self.measured is None:
            return False
        if self.claim == "Changes":
            return True
        found = [evidence.holds for evidence in (self.proof, self.test) if evidence is not None]
        return any(found) and (self.test is None or self.test.holds)

    @property
    def evidence(self) -> str:
        """The three words, as far as they are true."""
        words = ["proved"] if self.proof and self.proof.holds else []
        words += ["tested"] if self.test and self.test.holds else []
        words += ["measured"] if self.measured else []
        return " and ".join(words) or "nothing"

    @property
    def scope(self) -> str:
        """The claim with what it is about, for people."""
        if self.claim == "Within":
            return f"within a bound at each of {len(self.bounds)} weights (proved), outputs measured"
        units = "kept" if any(row.new < row.old for row in self.growth) else "old"
        where = f" on the {units} units of {', '.join(self.extended)}" if self.extended else ""
        return f"{self.claim.lower()}{where}, {self.evidence}"

    def __str__(self) -> str:
        lines = [f"{self.spec}: {self.scope}"]
        lines += [f"  {growth.axis}: {growth.old} -> {growth.new}" for growth in self.growth]
        if self.proof:
            lines.append(f"  proof: {self.proof.why}")
            lines += [f"    {row}" for row in (*self.proof.constraints, *self.proof.numbers)]
        lines += [f"    {bound}" for bound in self.bounds]
        lines += [f"  note: {note}" for note in self.notes]
        if self.test:
            lines.append(f"  test: {self.test.why}")
        if self.measured:
            lines.append(f"  measured: {self.measured}")
        return "\n".join(lines)
