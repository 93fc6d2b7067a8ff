"""Recipes: passes written down in YAML, checked before anything runs.

seed: 0
passes:
  - widen: {axis: "mlp@*.h.?.mlp", factor: 1.5}
  - widen-keys:to=24,scale=weights
  - supar: {base: [hidden=256, mlp=1024]}
  - deepen
# or, in place of passes, the sizes that they are to lead to:
# target: {hidden: 1024, layers: 16, heads: 16}
# or the number of parameters: {params: 2x}
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from graphgrow.errors import FileError, OptionError
from graphgrow.pipeline import Pipeline, parse_pass, written
from graphgrow.plan import Sizes
from graphgrow.program import Program
from graphgrow.target import Planned, planned

Scalar = str | int | float | bool | None
Value = Scalar | list[str | int | float]


class Target(BaseModel):
    """The sizes of `graphgrow plan`, or a number of parameters."""

    model_config = ConfigDict(extra="forbid", strict=True)

    hidden: int | None = Field(default=None, gt=0)
    layers: int | None = Field(default=None, gt=0)
    heads: int | None = Field(default=None, gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    head_size: int | None = Field(default=None, gt=0)
    mlp: int | None = Field(default=None, gt=0)
    params: str | int | None = None

    def planned(self, program: Program) -> Planned:
        """The passes that lead there. Raises OptionError or Refusal."""
        return planned(program, Sizes(**self.model_dump(exclude={"params"})), self.params)


class Recipe(BaseModel):
    """What a recipe file holds: passes in order, or a target."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: int | None = Field(default=None, ge=0, lt=2**32)
    passes: list[str | dict[str, dict[str, Value] | None]] | None = None
    target: Target | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.passes is None) == (self.target is None):
            raise ValueError("give either passes or a target")
        return self

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A recipe from a file. Raises FileError, or OptionError that names the place in it."""
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            found = f"a recipe that can't be read: {error}"
            raise FileError(found=found, where=str(path), fix="check the path") from None
        try:
            return cls.model_validate(yaml.safe_load(text))
        except yaml.YAMLError as error:
            fix = "mend it: a recipe is YAML, see graphgrow apply --help"
            raise OptionError(found=f"no YAML: {' '.join(str(error).split())}", where=str(path), fix=fix) from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the recipe"
            raise OptionError(
                found=f"{place}: {first['msg'].removeprefix('Value error, ')}",
                where=str(path),
                fix="write seed, and passes (a list of `name`, `name:key=value` or `name: {key: value}`) or a target",
            ) from None

    @classmethod
    def toward(cls, text: str) -> Self:
        """A recipe with a target from text, `params=2x` or `hidden=96,layers=3`. Raises OptionError."""
        parts = [part.partition("=") for part in text.split(",")]
        try:
            return cls(target=Target.model_validate_strings({name.strip(): size.strip() for name, _, size in parts}))
        except ValidationError as error:
            first = error.errors()[0]
            found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            names = ", ".join(Target.model_fields)
            raise OptionError(found=found, where=f"--target {text}", fix=f"write name=number; names: {names}") from None

    def checked(self) -> list[str]:
        """The passes as specs, each of which can be read. Raises OptionError."""
        specs = [_spec(item) for item in self.passes or ()]
        if not specs and self.target is None:
            raise OptionError(found="no passes", fix="name one: - widen")
        for spec in specs:
            parse_pass(spec)
        return specs

    def planned(self, program: Program) -> Planned:
        """The passes as specs; for a target those that lead there. Raises OptionError or Refusal."""
        return Planned(tuple(self.checked())) if self.target is None else self.target.planned(program)

    def pipeline(self, program: Program, seed: int | None = None) -> Pipeline:
        """The passes for a program. Raises OptionError or Refusal."""
        given = self.seed if seed is None else seed
        return Pipeline.parse(self.planned(program).specs, given)


def _spec(item: str | dict[str, dict[str, Value] | None]) -> str:
    if isinstance(item, str):
        return item
    if len(item) != 1:
        raise OptionError(found=f"a pass with the names {', '.join(item)}", fix="write each pass as an item of its own")
    ((name, options),) = item.items()
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    given = ",".join(f"{key}={written(value)}" for key, value in values.items())
    return f"{name}:{given}" if given else name
