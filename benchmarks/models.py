"""Models of real classes, with random weights or without any, and example inputs."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from graphgrow.program import Program
from graphgrow.tracing import trace

Inputs = dict[str, Tensor]
hf.logging.set_verbosity_error()


def tokens(batch: int = 2, length: int = 8, device: str = "cpu") -> Inputs:
    return {"input_ids": torch.randint(3, 90, (batch, length), device=device)}


def images(batch: int = 2, size: int = 224) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, size, size)}


def build(model: Any, config: Any, device: str = "cpu", **options: Any) -> nn.Module:
    """A Hugging Face class from a configuration, in training mode (`Any`: the classes' constructors are not typed)."""
    torch.manual_seed(0)
    settings = config(**options)
    settings.use_cache = False
    with torch.device(device):
        return model(settings).train()


def gpt2(device: str = "cpu", **options: Any) -> nn.Module:
    return build(hf.GPT2LMHeadModel, hf.GPT2Config, device, bos_token_id=0, eos_token_id=0, **options)


def llama(device: str = "cpu", **options: Any) -> nn.Module:
    return build(hf.LlamaForCausalLM, hf.LlamaConfig, device, **options)


def vit(**options: Any) -> nn.Module:
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return build(hf.ViTForImageClassification, hf.ViTConfig, **dropout, **options)


def resnet(**options: Any) -> nn.Module:
    return build(hf.ResNetForImageClassification, hf.ResNetConfig, **options)


def gpt2_program(layers: int, hidden: int, heads: int) -> Program:
    """A GPT-2 traced without weights, then given random ones: the model itself takes no memory."""
    shapes = trace(gpt2("meta", n_layer=layers, n_embd=hidden, n_head=heads), tokens(device="meta"))
    generator = torch.Generator().manual_seed(0)
    return shapes.replace(tensors={name: _random(tensor, generator) for name, tensor in shapes.tensors.items()})


def _random(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_meta:
        return tensor
    made = torch.zeros(tensor.shape, dtype=tensor.dtype)
    if tensor.is_floating_point():
        made.normal_(0, 0.02, generator=generator)
    return made.requires_grad_(tensor.requires_grad)
