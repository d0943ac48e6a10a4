#!/usr/bin/env bash
# From nothing to a report: sample data, shards, a training run on two Ray Train workers, its evaluation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# A Ray and a store of its own, whatever cluster this shell is set up for.
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS MLFLOW_TRACKING_URI

step() { printf '\n== %s\n' "$*" >&2; "$@"; }

step python -m preprocess.build_shards --output shards
step python -m training.run sample --data shards
run="$(ls -t runs | head -n 1)"
step python -m training.evaluate --run "$run" --data shards --output reports/demo --overwrite

cat <<WHERE

The shards       $PWD/shards
The report       $PWD/reports/demo/report.html
The run          .venv/bin/mlflow ui --backend-store-uri sqlite:///$PWD/mlflow.db
                 then open http://127.0.0.1:5000/#/experiments/1/runs/$run?workflowType=machine_learning
WHERE
