#!/usr/bin/env bash
# One minute of berthead: fit, score, apply and look at fitted functions, on the bundled tickets, without a network.
set -euo pipefail
cd "$(dirname "$0")/.."
out=demo-out
tickets=sample/tickets
rm -rf "$out"
say() {
  local word line='$'
  for word in "$@"; do [[ $word == *' '* ]] && line+=" \"$word\"" || line+=" $word"; done
  printf '\n\033[1m%s\033[0m\n' "$line"
  "$@"
}

# Which queue does a ticket belong to? Only the head is fitted; two baselines stand beside it.
say berthead fit $tickets/train.csv --label queue --adapt frozen --out $out/queue
say berthead eval $out/queue $tickets/test.csv
say berthead predict $out/queue $tickets/new.csv --out $out/new-with-queue.csv
say cut -c 1-110 $out/new-with-queue.csv
say berthead predict $out/queue "the driver says he left it with a neighbour i do not have"

# The same question with the encoder fitted as well: another function of the same architecture.
say berthead fit $tickets/train.csv --label queue --epochs 4 --lr 1e-4 --out $out/queue-full --quiet
say berthead eval $out/queue-full $tickets/test.csv

# Any number of tags a ticket, and a number a ticket.
say berthead fit $tickets/train.csv --task multilabel --label tags --adapt frozen --out $out/tags --quiet
say berthead predict $out/tags "THIRD time I write. Refund me or my lawyer will."
say berthead fit $tickets/train.csv --task regress --label urgency --adapt frozen --out $out/urgency --quiet
say berthead predict $out/urgency "the battery is hot and smells of burning"

# What is in the folder, and does it still give the same answers?
say berthead info $out/queue
say berthead verify $out/queue
