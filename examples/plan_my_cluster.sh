#!/usr/bin/env bash
# A plan for your own cluster, from what your machine and your engine already write.
#
#   examples/plan_my_cluster.sh nccl_topo.xml 4 expert_distribution_recorder_*.pt deepseek-v3 9
#
# nccl_topo.xml   what NCCL writes on one host where NCCL_TOPO_DUMP_FILE=nccl_topo.xml is set
# 4               hosts like that one, joined by rails of 400 Gb/s: NIC_GBPS and FABRIC say otherwise
# *.pt            what SGLang's expert distribution recorder dumps (any file that `epplan routing show` reads will do)
# deepseek-v3     a known name, or the model's config.json
# 9               expert slots on every rank
set -euo pipefail
topology=$1 hosts=$2 statistics=$3 model=$4 slots=$5

epplan topology import "$topology" --hosts "$hosts" --fabric "${FABRIC:-rail}" --nic-gbps "${NIC_GBPS:-50}" -o cluster.yaml
epplan topology lint cluster.yaml || true                       # what is wrong with the machine; planning goes on
epplan routing show "$statistics" --model "$model"              # skew, drift, and whether placement can help at all
epplan plan --model "$model" --cluster cluster.yaml --routing "$statistics" --slots-per-rank "$slots" \
    --tokens-per-rank "${TOKENS:-4096}" -o plan.json
epplan evaluate plan.json linear eplb eplb-global --cluster cluster.yaml --routing "$statistics"
epplan export plan.json --to sglang --lossy --cluster cluster.yaml --routing "$statistics" \
    -o expert_location.json   # prints the flags to launch with, and what is lost
