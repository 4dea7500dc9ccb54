#!/usr/bin/env bash
# The whole journey on simulated tomograms in object storage, without a GPU: a few minutes on four cores. Give TOMORAY_DATA=s3://bucket.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$TOMORAY_DATA/smoke
tomoray simulate jobs/simulate.toml --output "$data/tomograms" --tomograms 6 --shape-zyx '[48, 96, 96]' --crowding 8 --workers 1
tomoray index jobs/index.toml --source "$data/tomograms" --output "$data/catalogue.parquet"
tomoray train jobs/train_supervised_small.toml --catalogue "$data/catalogue.parquet" --output "$data/runs" --workers.count 1 \
    --epochs 2 --steps-per-epoch 20 --crops.readers 1
tomoray pick jobs/pick.toml --catalogue "$data/catalogue.parquet" --checkpoint "$data/runs/supervised-small/picker" --output "$data/picks" \
    --splits '["test"]' --views 1 --actors 1 --readers 1
tomoray score jobs/score.toml --catalogue "$data/catalogue.parquet" --picks "$data/picks" --output "$data/picks/score"
