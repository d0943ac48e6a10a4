#!/usr/bin/env bash
# ./demo.sh [RECIPE IMAGES [--FIELD VALUE ...]]: shards, a training, its evaluation and report.
# IMAGES is a folder of raw images or a tar of one; without it, the embedded sample is drawn.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# A Ray and a store of its own, whatever cluster this shell is set up for.
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS MLFLOW_TRACKING_URI

step() { printf '\n== %s\n' "$*" >&2; "$@"; }

recipe="${1:-sample}" images="${2:-}" shards=shards report=reports/demo build=()
if [[ "$recipe" != sample ]]; then
  if [[ ! -e "$images" ]]; then
    echo "error: IMAGES is '$images', which does not exist; use a folder of images, or a tar of one" >&2
    exit 2
  fi
  shards="shards-$recipe" report="reports/$recipe"
  if [[ -f "$images" ]]; then
    folder="data/$recipe"
    if [[ ! -d "$folder" ]]; then # unpacked aside: a part of it must not be taken for the whole
      rm -rf "$folder.partial" && mkdir -p "$folder.partial"
      step tar --extract --file "$images" --directory "$folder.partial"
      mv "$folder.partial" "$folder"
    fi
    images="$folder" top=("$folder"/*)
    if [[ ${#top[@]} == 1 ]]; then images="${top[0]}"; fi
  fi
  build=(--input "$images" --name "$recipe")
fi

step python -m preprocess.build_shards "${build[@]}" --output "$shards"
step python -m training.run "$recipe" --data "$shards" "${@:3}"
run="$(ls -t runs | head -n 1)"
evaluate=(python -m training.evaluate --run "$run" --data "$shards" --overwrite)
if [[ "$recipe" == sample ]]; then
  step "${evaluate[@]}" --output "$report"
else
  step "${evaluate[@]}" --output "$report" --retrieve-from train
  step "${evaluate[@]}" --output "$report-10crops" --crops 10
fi

cat <<WHERE

The shards       $PWD/$shards
The report       $PWD/$report/report.html
The run          .venv/bin/mlflow ui --backend-store-uri sqlite:///$PWD/mlflow.db
                 then open http://127.0.0.1:5000/#/experiments/1/runs/$run?workflowType=machine_learning
WHERE
