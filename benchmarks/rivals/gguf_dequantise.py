"""A quantised GGUF file with its weights written out as FP32, so that llama.cpp does not round activations.

python gguf_dequantise.py FILE.gguf OUT.gguf        (needs numpy and `gguf` only)
"""

from __future__ import annotations

import sys

import gguf
import numpy as np


def dequantise(source: str, target: str) -> None:
    """Everything but the weights' format and `general.file_type` stays as it is."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if name == "general.file_type":
            writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        elif field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    dequantise(sys.argv[1], sys.argv[2])
