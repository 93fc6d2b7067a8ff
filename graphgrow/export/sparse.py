"""Sparse initializers of ONNX: of a weight that is mostly zeros, its other values with their places."""

# onnx has partial types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path

import numpy as np

INDEX = 8  # bytes of a place: ONNX knows int64 only


def with_sparse_initializers(path: Path) -> int:
    """Write the ONNX file again with every weight in the form that takes fewer bytes; gives how many are sparse now. A
    runtime that knows no sparse operators (ONNX Runtime) makes them dense when it loads the file."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    kept: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        flat = values.reshape(-1)
        places = np.flatnonzero(flat)
        needed = places.size * (values.itemsize + INDEX)
        if values.ndim < 2 or values.dtype.kind != "f" or needed >= values.nbytes:
            kept.append(tensor)
            continue
        held = numpy_helper.from_array(flat[places], tensor.name)
        at = numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_places")
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(held, at, list(values.shape)))
    sparse = {tensor.values.name for tensor in model.graph.sparse_initializer}
    typed = [value for value in model.graph.value_info if value.name not in sparse]  # as dense tensors
    del model.graph.value_info[:]
    model.graph.value_info.extend(typed)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, str(path))
    return len(model.graph.sparse_initializer)
