"""Coordinate check over density: a GPT-2 of bytes (2 layers, hidden 512 with a base of 64, heads of 32) takes 10 Adam
steps at 1e-2, with random masks on its hidden weights. The mean absolute value of what each residual block adds, over 2
seeds, for densities from 1 to 1/32; the ratio is to the dense model. SmuPar is to stay within [0.5, 2] at every density
(its smallest and largest ratio), the standard parameterization and muP to fall to 1/10 or less at 1/32.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from benchmarks.measure import Row, Skipped

WIDTH, BASE, DENSITIES = 512, 64, (1.0, 0.5, 0.25, 0.125, 1 / 16, 1 / 32)
NAMES = {"sp": "standard", "mup": "muP", "supar": "SmuPar"}


def language_model(width: int) -> object:
    """A GPT-2 without dropout over bytes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=256, n_positions=64, n_embd=width, n_layer=2, n_head=width // 32, use_cache=False, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def rows() -> Iterator[Row]:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise Skipped("needs transformers") from error
    from examples.demo import text
    from graphgrow.runtime.coordinates import Settings, coordinates, text_inputs

    settings = Settings(
        widths=(WIDTH,), densities=DENSITIES, schemes=("sp", "mup", "supar"), base=BASE, seeds=2, lr=1e-2, batch=4
    )
    found = coordinates(language_model, settings, text_inputs(settings, text()))
    for scheme in settings.schemes:
        for activation in dict.fromkeys(point.activation for point in found.points):
            if activation == "output":
                continue
            mine = [one for one in found.points if (one.scheme, one.activation) == (scheme, activation)]
            sizes = [fmean(one.size for one in mine if one.density == density) for density in DENSITIES]
            shown = ", ".join(f"{size:.3g}" for size in sizes[1:])
            name = f"{NAMES[scheme]}, {activation}: 1/2, 1/4, 1/8, 1/16, 1/32"
            ratios = [size / sizes[0] for size in sizes]
            if scheme == "supar":
                yield Row(f"{name}; smallest", shown, f"dense: {sizes[0]:.3g}", min(ratios), target=0.5, least=True)
                yield Row(f"{name}; largest", shown, f"dense: {sizes[0]:.3g}", max(ratios), target=2.0)
            else:
                yield Row(name, shown, f"dense: {sizes[0]:.3g}", ratios[-1], target=0.1)
