"""A GPT-2 over the bytes of Python's standard library, grown after 300 steps by each pass: held-out loss right before
and after, the worst within the next 20 steps, and after 50, with the optimizer carried by `grow_optimizer` and with a
new one, on the same batches; for reference the grown model from new random weights, as GPT-2 starts, after as many
steps. AdamW at 3e-3 without a warm-up. The ratio is of the losses after 50 steps, carried over new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.measure import Row, Skipped

BEFORE, AFTER, RATE = 300, 50, 3e-3
PASSES: dict[str, list[str]] = {
    "no growth": [],
    "widen x2": ["widen:factor=2"],
    "add-heads x1.5": ["add-heads:factor=1.5"],
    "widen-keys x1.5": ["widen-keys:factor=1.5"],
    "widen-values x1.5": ["widen-values:factor=1.5"],
    "widen-hidden x1.5": ["widen-hidden:factor=1.5"],
    "deepen, 1 layer more": ["deepen:to=3"],
    "all six": ["widen:factor=2", "add-heads:factor=1.5", "widen-keys:factor=1.5", "widen-values:factor=1.5",
                "widen-hidden:factor=1.5", "deepen:to=3"],
}  # fmt: skip


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Tensor, steps: int, watch: int = 0) -> list[float]:
    """Train, and give the held-out loss after each of the first `watch` steps and after the last."""
    from examples.demo import batches, held_out, loss_of

    source, found = batches(data, 2 if watch else 3), list[float]()
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model.train(), next(source)).backward()
        optimizer.step()
        if step < watch or step == steps - 1:
            found.append(held_out(model, data))
    return found


@torch.no_grad()
def restarted(module: nn.Module) -> nn.Module:
    """The module with weights as GPT-2 starts: matrices and tables normal, gains one, biases zero."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.02)
        else:
            parameter.fill_(float(name.endswith("weight")))
    return module


def rows() -> Iterator[Row]:
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise Skipped("needs transformers") from error
    import graphgrow as gg
    from examples.demo import LENGTH, text

    torch.manual_seed(0)
    data = text()
    config = GPT2Config(
        n_layer=2, n_embd=48, n_head=4, vocab_size=256, n_positions=LENGTH, use_cache=False, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    program = gg.trace(GPT2LMHeadModel(config), {"input_ids": torch.randint(256, (2, 16))})
    module = program.module()
    optimizer = AdamW(module.parameters(), lr=RATE)
    train(module, optimizer, data, BEFORE)
    for what, specs in PASSES.items():
        yield _event(what, specs, program.trained(module), module, optimizer, data)


def _event(what: str, specs: Sequence[str], program: object, module: nn.Module, optimizer: AdamW, data: Tensor) -> Row:
    import graphgrow as gg
    from examples.demo import held_out

    assert isinstance(program, gg.Program)
    before = held_out(module, data)
    grown = gg.Pipeline.parse(specs)(program)
    carried_module, reset_module = grown.module(), grown.module()
    after = held_out(carried_module, data)
    carried = train(carried_module, gg.grow_optimizer(optimizer, module, carried_module), data, AFTER, 20)
    reset = train(reset_module, AdamW(reset_module.parameters(), lr=RATE), data, AFTER, 20)
    scratch_module = restarted(grown.module())
    scratch = train(scratch_module, AdamW(scratch_module.parameters(), lr=RATE), data, AFTER, 20)

    def told(losses: Sequence[float]) -> str:
        return f"peak {max(losses[:20]) - before:+.3f}, after 50 {losses[-1]:.3f}"

    name = f"{what}: {before:.4f} -> {after:.4f}"
    peers = f"new optimizer: {told(reset)}; new weights: after 50 {scratch[-1]:.3f}"
    return Row(name, f"carried: {told(carried)}", peers, carried[-1] / reset[-1], target=1.0)
