#!/usr/bin/env bash
# Two minutes of berthead: fit, score, apply and look at fitted functions of every task, on the bundled samples, without
# a network.
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

# The other tasks: a tag a word, tags with an intent, an answer in a context, one of several choices.
tasks=sample/tasks
say berthead fit $tasks/commands-train.conll --task tag --epochs 8 --lr 5e-4 --batch 16 --out $out/tag --quiet
say berthead predict $out/tag "play Paper Moon Street by Otto Brandt in the garage tonight"
say berthead fit $tasks/commands-train.jsonl --task joint --epochs 8 --lr 5e-4 --batch 16 --out $out/joint --quiet
say berthead predict $out/joint "bring the heating in the attic to twenty degrees before dinner"
say berthead fit $tasks/shops-train.json --task span --epochs 4 --lr 3e-4 --batch 16 --out $out/span --quiet
say berthead eval $out/span $tasks/shops-test.json
say berthead predict $out/span "What does shipping cost?" "We sell by mail. Shipping costs 9 crowns for orders of any size."
say berthead fit $tasks/replies-train.jsonl --task choose --epochs 3 --lr 1e-4 --batch 16 --out $out/choose --quiet
say berthead predict $out/choose "The lid came off in the first week." \
  "We have sent you a link to set a new password." "Please send it in, we repair it free of charge."

# What is in the folder, and does it still give the same answers?
say berthead info $out/queue
say berthead verify $out/queue
