"""TensorRT-LLM wide EP: the file of `load_balancer` (examples/wide_ep/ep_load_balancer, MoeLoadBalancerConfig).

YAML of exactly three fields: `num_slots` (slots of a layer over all ranks, a multiple of the ranks),
`layer_updates_per_iter` (0 = the placement is static), `initial_global_assignments` {layer of the model: [expert of
each slot]}, MoE layers only; slot p lies on rank p // (num_slots / ranks).
"""

from __future__ import annotations

from planner.exporters.target import Deployment, Limits, Target


def write(deployment: Deployment) -> bytes:
    """Return the YAML file, one line a layer."""
    rows = deployment.phy2log_LP().tolist()
    lines = [f"num_slots: {len(rows[0])}", "layer_updates_per_iter: 0", "initial_global_assignments:"]
    lines += [f"  {layer}: {row}" for layer, row in zip(deployment.model.moe_layers, rows, strict=True)]
    return ("\n".join(lines) + "\n").encode()


def hint(deployment: Deployment, file: str) -> str:
    """Return the options of trtllm-serve and trtllm-bench; without attention DP the file is silently ignored."""
    return (
        f"--ep_size {deployment.num_ranks}, and in the LLM API options file: enable_attention_dp: true, "
        f"moe_config: {{backend: WideEP, load_balancer: {file}}}"
    )


TARGET = Target("TensorRT-LLM moe_config.load_balancer (YAML)", Limits(), write, hint)
