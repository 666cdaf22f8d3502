#!/usr/bin/env bash
# Every night: does a new plan pay for what it moves? For cron.
#
#   examples/replan_nightly.sh plan.json today.json deepseek-v3 cluster.yaml 9
#
# plan.json    the plan in force; it is replaced, in one step, where the new one is at least 2 % faster (MIN_GAIN)
# today.json   statistics since the last plan; then model, cluster and slots as in plan_my_cluster.sh
#
# At most 10 % of the slots move (MOVES). `epplan watch` does the same as a service, as soon as statistics arrive.
set -euo pipefail
plan=$1 statistics=$2 model=$3 cluster=$4 slots=$5
common=(--cluster "$cluster" --routing "$statistics" --tokens-per-rank "${TOKENS:-4096}")

next=$(mktemp "$plan.XXXXXX")
trap 'rm -f "$next"' EXIT
epplan plan --model "$model" --slots-per-rank "$slots" "${common[@]}" --from "$plan" --max-moves "${MOVES:-10%}" -o "$next"
epplan diff "$plan" "$next" "${common[@]}"      # what moves over which links, and after how many steps it has paid back
epplan evaluate "$plan" "$next" "${common[@]}" --json > compared.json
if python3 -c '
import json, sys
old, new = json.load(open("compared.json"))["plans"][:2]
sys.exit(new["total_us"] > (1 - float(sys.argv[1]) / 100) * old["total_us"])
' "${MIN_GAIN:-2}"; then
    mv "$next" "$plan" && echo "new plan in force: $plan"
else
    echo "less than ${MIN_GAIN:-2} % faster: the plan in force stays"
fi
