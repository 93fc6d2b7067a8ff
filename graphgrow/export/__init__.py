"""Programs for other tools: ONNX, `.pt2` and safetensors. Each file is compared before it gets its name."""

from __future__ import annotations

from graphgrow.export.onnx import OnnxReport, export_onnx
from graphgrow.export.torch_export import export_pt2
from graphgrow.export.weights import export_safetensors

__all__ = ["OnnxReport", "export_onnx", "export_pt2", "export_safetensors"]
