"""grow-vocab: more tokens, or more classes.

Statement. Let an axis be looked up by token identifiers at the input and emitted by a head at the output, with nothing
that mixes its units on the way out. Give it new units. Then for every input of old identifiers the old units of every
output are what they were, whatever all new rows hold; the new units stand beside them.

Proof. A lookup of an old identifier reads an old row; an old logit is a sum over the stream that no new row is part of.
On the graph at hand `prove` carries this out and shows that the old units of each output are the same. It says nothing
of what is made of the outputs outside of the program: a softmax over all units sees the new ones. A program that
normalises inside is refused.

Reference. Hewitt, Initializing New Word Embeddings for Pretrained Language Models (2021), on what a softmax then does,
and why new rows near the mean of the old ones (`init=scaled` draws around it) do the least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow.growth import Growth
from graphgrow.pipeline import option


@dataclass(frozen=True, kw_only=True)
class GrowVocab(Growth):
    """Grow the vocabulary (or the classes) beside what there is: the old outputs stay."""

    name: ClassVar[str] = "grow-vocab"
    roles: ClassVar[tuple[str, ...]] = ("vocab",)

    outputs: Literal["keep", "extend"] = option(
        "axes that outputs show: keep does not grow them; extend puts new units beside the old ones, which stay",
        default="extend",
    )
