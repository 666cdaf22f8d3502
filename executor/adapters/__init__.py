"""Adapters: MoE layers that others wrote, as the executor sees its own (`executor.moe_layers.MoELayer`).

A layer is known by what it offers, never by the name of its class.

| module | whose layers |
|---|---|
| `foreign` | what all of them share |
| `huggingface` | transformers: a block with packed `experts`, which are called as `experts(x, ids, weights)` |
| `dispatching` | modules that call `ep_dispatch_and_compute` themselves, as KempnerForge's do |
| `ep_implementation` | transformers 5.23 and later: `DistributedConfig(ep_size=..., ep_implementation="epplan")` |
"""
