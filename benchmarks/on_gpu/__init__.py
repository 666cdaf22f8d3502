"""The parts of `python -m benchmarks.gpu`: each measures one thing and returns rows of plain numbers.

| module | what it measures |
|---|---|
| `clock` | medians by device events, caches flushed between runs |
| `shapes` | the models' layers, and how many rows their experts get |
| `ceilings` | copy bandwidth and the GEMM rate of the machine: what all else is held against |
| `experts` | grouped SwiGLU experts over tokens per expert, even and skewed |
| `rows` | routing, permute, weighted sum, packing of distinct rows |
| `layer` | the whole EP layer on one rank, its host syncs, and what it adds to experts and permutes |
| `several` | several NCCL ranks on the GPUs that are there |
| `fit` | a roofline fitted to half of the expert times predicts the other half; runs anywhere, later too |
"""
