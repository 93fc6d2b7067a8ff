"""ONNX: converted by torch.onnx, checked, and run in ONNX Runtime before the file gets its name."""

# onnxruntime has no types, and those of onnx_ir, onnx and torch.onnx are partial.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from graphgrow.atomic import atomic_file
from graphgrow.errors import ExportError
from graphgrow.export.agreement import Agreement, Deviation, Run
from graphgrow.export.capture import brief, prepared, quiet
from graphgrow.export.interface import Interface, input_types, output_types
from graphgrow.export.sparse import with_sparse_initializers
from graphgrow.export.translate import translated
from graphgrow.program import Program
from graphgrow.rewrite.fold import folded

OPSET = 20  # safe: at 23 ONNX Runtime rejects some rotary embeddings
# protobuf ends at 2 GiB; the graph itself needs some room beside the tensors.
_INSIDE = 2_000_000_000  # bytes of tensors up to which a file holds them itself


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and how near to the module it computes. `deviation` is relative to the largest value of an
    output; it and `tolerance` are those of the output that came nearest to its tolerance. Unchecked: None."""

    path: Path
    bytes: int  # of all files
    opset: int
    inputs: Mapping[str, str]  # `int64[batch, sequence]`, by name
    outputs: Mapping[str, str]
    data: Path | None = None  # the file beside it that holds the weights
    deviation: float | None = None
    tolerance: float | None = None
    sizes: tuple[Mapping[str, int], ...] = ()  # tried in ONNX Runtime
    sparse: int = 0  # weights stored as sparse tensors


def export_onnx(
    program: Program,
    path: str | Path,
    *,
    opset: int = OPSET,
    check: bool = True,
    sizes: Sequence[Mapping[str, int]] | None = None,
    sparse_initializers: bool = False,
) -> OnnxReport:
    """Write the program, in evaluation mode, as an ONNX file with its dynamic sizes; it appears complete or not at all.
    Masks are multiplied into their weights. `sparse_initializers` stores what is mostly zeros (more than two thirds
    of a float32 weight) as sparse tensors: a smaller file, which ONNX Runtime makes dense when it loads it.

    With `check`, ONNX Runtime first runs the file on the CPU, on random inputs of several sizes (or of `sizes`,
    such as `[{"batch": 1, "sequence": 9}]`), and must agree with the module. From 2 GB on the weights are in
    `NAME.onnx.data` beside it. Raises ExportError, CheckFailed, FileError, OptionError.
    """
    target = Path(path).resolve()
    ready = prepared(program, str(path))
    plain = folded(ready)
    interface = Interface.of(plain.graph)
    with (
        atomic_file(path, needed=sum(tensor.nbytes for tensor in ready.tensors.values())) as place,
        TemporaryDirectory(prefix=f".{place.stem}", dir=place.parent) as folder,
    ):
        agreement = Agreement(ready, interface.outputs, sizes) if check else None
        draft = Path(folder, target.name)
        data = _written(translated(plain, interface, opset, str(path), program.digest), draft)
        sparse = _sparse(draft, data) if sparse_initializers else 0
        _require_valid(draft, opset, typed=not sparse)
        found = agreement.require(_runtime(draft, ready, opset), "an ONNX file") if agreement else None
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        if data is not None:
            with atomic_file(target.with_name(data.name)) as beside:
                os.replace(data, beside)
        os.replace(draft, place)
    return _report(Path(path), size, opset, ready, interface, data, found, agreement, sparse)


def _report(
    path: Path, size: int, opset: int, program: Program, interface: Interface, data: Path | None,
    found: Deviation | None, agreement: Agreement | None, sparse: int,
) -> OnnxReport:  # fmt: skip
    return OnnxReport(
        path=path,
        bytes=size,
        opset=opset,
        inputs=input_types(program),
        outputs=output_types(program, interface),
        data=path.with_name(data.name) if data else None,
        deviation=found.worst if found else None,
        tolerance=found.tolerance if found else None,
        sizes=agreement.sizes if agreement else (),
        sparse=sparse,
    )


def _written(model: Any, draft: Path) -> Path | None:
    """Write the model, with the weights beside it where they are too large; gives their file."""
    import onnx_ir

    held = (value.const_value for value in model.graph.initializers.values())
    if sum(tensor.nbytes for tensor in held if tensor is not None) <= _INSIDE:
        onnx_ir.save(model, draft)
        return None
    data = draft.with_name(f"{draft.name}.data")
    onnx_ir.save(model, draft, external_data=data.name)
    return data


def _sparse(draft: Path, data: Path | None) -> int:
    if data is not None:
        fix = "leave --sparse-initializers out"
        raise ExportError(found="sparse initializers beside weights in a file of their own", where="2 GB", fix=fix)
    return with_sparse_initializers(draft)


def _require_valid(draft: Path, opset: int, typed: bool) -> None:
    """`typed`: infer all types too, which onnx can't do where a dense operator reads a sparse initializer."""
    import onnx

    try:
        onnx.checker.check_model(str(draft), full_check=typed and draft.stat().st_size < _INSIDE)
    except Exception as error:  # of onnx.checker and of protobuf
        raise _refused(f"a file that onnx.checker refuses: {brief(error)}", opset) from error


def _runtime(draft: Path, program: Program, opset: int) -> Run:
    """Runs the file in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        try:
            found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        except Exception as error:
            raise _unable(error, program, opset) from error
        return [torch.from_numpy(value) for value in found]

    try:
        with quiet():
            session = onnxruntime.InferenceSession(str(draft), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _unable(error, program, opset) from error
    return run


def _unable(error: Exception, program: Program, opset: int) -> ExportError:
    """The error for a file that ONNX Runtime does not run. (Its errors have no common class.)"""
    found = f"a file that ONNX Runtime does not run: {brief(error)}"
    if program.dtype == "float32":
        return _refused(found, opset)
    fix = "from Python, export program.to('float32'), or pass check=False if another runtime is meant for it"
    return ExportError(found=f"{found} (the weights are {program.dtype})", where="the CPU of ONNX Runtime", fix=fix)


def _refused(found: str, opset: int) -> ExportError:
    fix = "use opset=20" if opset != 20 else "please report this model; nothing was written"
    return ExportError(found=found, where=f"opset {opset}", fix=fix)
