#!/usr/bin/env bash
# 400G or 800G NICs? The best plan on each, side by side.
#
#   examples/choose_nics.sh nccl_topo.xml 4 loads.json deepseek-v3 9
#
# The arguments are those of plan_my_cluster.sh. All times are predicted: what counts is the difference. There is none
# where the PCIe link behind a NIC is the slower of the two: `slowest layer held up by` in the table says so.
set -euo pipefail
topology=$1 hosts=$2 statistics=$3 model=$4 slots=$5

for gbit in 400 800; do
    epplan topology import "$topology" --hosts "$hosts" --nic-gbps $((gbit / 8)) --name "nics-$gbit" -o "nics-$gbit.yaml"
    epplan plan --model "$model" --cluster "nics-$gbit.yaml" --routing "$statistics" --slots-per-rank "$slots" \
        --tokens-per-rank "${TOKENS:-4096}" --json -o "plan-$gbit.json" > "compared-$gbit.json"
done
python3 - <<'PYTHON'
import json

for gbit in (400, 800):
    plans = json.load(open(f"compared-{gbit}.json"))["plans"]
    times = {plan["name"]: plan["total_us"] / len(plan["layers"]) for plan in plans}
    print(f"{gbit}G, predicted us a layer:", ", ".join(f"{name} {us:,.0f}" for name, us in times.items()))
PYTHON
