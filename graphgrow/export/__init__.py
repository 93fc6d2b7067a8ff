"""Programs for other tools: ONNX, `.pt2`, safetensors, Hugging Face. What is written is compared before it is named."""

from __future__ import annotations

from graphgrow.export.huggingface import export_huggingface, stream_huggingface
from graphgrow.export.onnx import OPSET, OnnxReport, export_onnx
from graphgrow.export.torch_export import export_pt2
from graphgrow.export.weights import export_safetensors

__all__ = [
    "OPSET",
    "OnnxReport",
    "export_huggingface",
    "export_onnx",
    "export_pt2",
    "export_safetensors",
    "stream_huggingface",
]
