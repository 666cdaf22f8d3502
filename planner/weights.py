"""How the weights of an expert are stored: bits a weight and the scales beside them.

Sources: fp8 in 128 x 128 blocks with float32 scales: deepseek-ai/DeepSeek-V3 README_WEIGHTS.md; mxfp4 and mxfp8 in
blocks of 32 with an 8-bit scale: OCP Microscaling Formats v1.0, section 5; nvfp4 in blocks of 16 with an fp8 scale:
NVIDIA ModelOpt; int4 and int8 in groups with a 16-bit scale: compressed-tensors, AutoAWQ and GPTQ checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

WeightDtype = Literal[
    "fp32", "bf16", "fp16", "fp8", "fp8-channel", "mxfp8", "int8", "mxfp4", "nvfp4", "int4-g32", "int4-g64", "int4-g128"
]


@dataclass(frozen=True)
class WeightFormat:
    """Storage of one weight matrix.

    Attributes:
        bits: bits of one weight.
        scale_bits: bits of one scale (0 where there is none).
        block_rows, block_columns: the block that one scale covers; 0 = the whole side of the matrix.

    """

    bits: int
    scale_bits: int = 0
    block_rows: int = 1
    block_columns: int = 0

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a [rows, columns] matrix with its scales."""
        scales = ceil(rows / (self.block_rows or rows)) * ceil(columns / (self.block_columns or columns))
        return ceil(rows * columns * self.bits / 8) + ceil(scales * self.scale_bits / 8)


WEIGHT_FORMATS: Final[dict[str, WeightFormat]] = {
    "fp32": WeightFormat(32),
    "bf16": WeightFormat(16),
    "fp16": WeightFormat(16),
    "fp8": WeightFormat(8, 32, 128, 128),
    "fp8-channel": WeightFormat(8, 32, 1, 0),
    "mxfp8": WeightFormat(8, 8, 1, 32),
    "int8": WeightFormat(8, 16, 1, 0),
    "mxfp4": WeightFormat(4, 8, 1, 32),
    "nvfp4": WeightFormat(4, 8, 1, 16),
    "int4-g32": WeightFormat(4, 16, 1, 32),
    "int4-g64": WeightFormat(4, 16, 1, 64),
    "int4-g128": WeightFormat(4, 16, 1, 128),
}
