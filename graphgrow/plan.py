"""Plans: the passes that lead from a transformer to a larger one, from the sizes that people say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from graphgrow.axes import Atom
from graphgrow.axes.names import Named
from graphgrow.errors import OptionError, Refusal
from graphgrow.layers import stacks
from graphgrow.program import Program
from graphgrow.sizes import number


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a transformer measures. `heads` are those of queries, in all groups; `head_size` that of keys and values. As
    a target, None leaves a size as it is."""

    hidden: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    mlp: int | None = None

    def __str__(self) -> str:
        given = [(item.name.replace("_", " "), getattr(self, item.name)) for item in fields(self)]
        return ", ".join(f"{name} {size}" for name, size in given if size is not None)


def measured(program: Program) -> Sizes:
    """The sizes of a transformer; None for what it has not, or not alike everywhere."""
    groups, inside = _common(program, "kv_heads"), _common(program, "heads")
    depths = {len(stack.layers) for stack in stacks(program.graph)}
    return Sizes(
        hidden=_common(program, "hidden"),
        layers=depths.pop() if len(depths) == 1 else None,
        heads=(groups or 1) * inside if inside is not None else None,
        kv_heads=groups if inside is not None else None,
        head_size=_common(program, "value") or _key_size(program),
        mlp=_common(program, "mlp"),
    )


def plan(program: Program, target: Sizes) -> tuple[str, ...]:
    """The specs of the passes that lead to `target`, each for one kind of axis.

    Where heads * head size is the hidden size it stays so, if it can: classes that have no field for the size of heads
    take it for granted. Raises Refusal for a size that the model has not, and OptionError for one that is smaller.
    """
    now = measured(program)
    target = _with_heads(now, target)
    refuse_smaller(now, target)
    specs = tuple(_specs(program, now, target))
    if not specs:
        raise OptionError(found=f"nothing to grow: the model has {now}", fix="give a larger size: --hidden, --layers …")
    return specs


def refuse_smaller(now: Sizes, target: Sizes) -> None:
    """Raise Refusal for a size that the model has not, and OptionError for one that is smaller."""
    for item in fields(Sizes):
        old, new = getattr(now, item.name), getattr(target, item.name)
        if new is not None and old is None:
            what = item.name.replace("_", " ")
            raise Refusal(
                found=f"no single {what} size in this program: it has {now or 'none of these sizes'}",
                where=f"--{item.name.replace('_', '-')} {new}",
                fix="leave it out, or apply passes to the axes that you mean: `graphgrow axes` lists them",
            )
        if new is not None and new < old:
            found = f"--{item.name.replace('_', '-')} {new}, where the model has {old}"
            raise OptionError(found=found, fix="give a larger number")


def _with_heads(now: Sizes, target: Sizes) -> Sizes:
    """The target with the size of heads that keeps heads * head size = hidden, where that was so."""
    if target.head_size is not None or not now.hidden or not now.heads or not now.head_size:
        return target
    hidden, heads = target.hidden or now.hidden, target.heads or now.heads
    if now.heads * now.head_size != now.hidden or hidden % heads or hidden // heads < now.head_size:
        return target
    return replace(target, head_size=hidden // heads)


def _specs(program: Program, now: Sizes, target: Sizes) -> Iterator[str]:
    if _larger(now.mlp, target.mlp):
        yield f"widen:axis=mlp,to={target.mlp}"
    yield from _heads(now, target)
    if _larger(now.head_size, target.head_size):
        assert target.head_size is not None
        yield f"widen-keys:to={_keys(program, target.head_size)},scale=weights"
        if named(program, "value"):
            yield f"widen-values:to={target.head_size}"
    if _larger(now.hidden, target.hidden):
        yield f"widen-hidden:to={target.hidden}"
    if _larger(now.layers, target.layers):
        yield f"deepen:to={target.layers}"


def _larger(old: int | None, new: int | None) -> bool:
    return old is not None and new is not None and new > old


def _heads(now: Sizes, target: Sizes) -> Iterator[str]:
    """Groups and heads in each: as few new groups as do."""
    if now.heads is None or (target.heads is None and target.kv_heads is None):
        return
    groups = now.kv_heads or 1
    inside = now.heads // groups
    if target.heads is None:
        wanted, each = target.kv_heads or groups, inside
    else:
        heads = target.heads
        ways = [target.kv_heads] if target.kv_heads else range(groups, heads + 1) if now.kv_heads else [1]
        fitting = [way for way in ways if heads % way == 0 and heads // way >= inside]
        if not fitting:
            raise OptionError(
                found=f"{heads} heads in {target.kv_heads or f'{groups} or more'} groups of at least {inside}",
                fix=f"give a multiple: --heads {inside * (target.kv_heads or groups) * 2}",
            )
        wanted, each = fitting[0], heads // fitting[0]
    if wanted > groups:
        yield f"add-kv-heads:to={wanted}"
    if each > inside:
        yield f"add-heads:to={each}"


def _keys(program: Program, head_size: int) -> int:
    """The units of the key axis at a size of heads: rotary positions turn pairs, and the axis counts these."""
    per_unit = {_per_unit(program, axis.atom) for axis in named(program, "key")}
    if len(per_unit) != 1 or head_size % (one := per_unit.pop()):
        raise Refusal(
            found=f"keys that are not alike in all heads, or not of {head_size} units",
            where="--head-size",
            fix="grow them by themselves: --pass widen-keys:axis=NAME,to=N",
        )
    return head_size // one


def _key_size(program: Program) -> int | None:
    """The size of keys that are one axis with values."""
    sizes = {number(axis.size) * _per_unit(program, axis.atom) for axis in named(program, "key")}
    return sizes.pop() if len(sizes) == 1 else None


def _per_unit(program: Program, atom: Atom) -> int:
    """How many numbers of each key one unit of its axis stands for."""
    for contraction, _, summed, _ in program.axes.contractions:
        if not any(program.graph[name].op == "parameter" for name in contraction.operands):
            for term in summed:
                if atom in term.atoms:
                    return number(term.size) // number(atom.size)
    return 1


def named(program: Program, role: str) -> Sequence[Named]:
    """The axes of a role that are not frozen."""
    return [axis for axis in program.axes.named if axis.role == role and not axis.frozen]


def _common(program: Program, role: str) -> int | None:
    """The size that all axes of a role have."""
    sizes = {number(axis.size) for axis in named(program, role)}
    return sizes.pop() if len(sizes) == 1 else None
