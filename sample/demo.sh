#!/usr/bin/env bash
# A few minutes of berthead: fit, score, apply and look at fitted functions of every task, on the bundled samples, without
# a network. BEGAN, seconds since 1970: when all this was started, set-up included.
set -euo pipefail
cd "$(dirname "$0")/.."
out=demo-out tickets=sample/tickets tasks=sample/tasks
began=${BEGAN:-$(date +%s)}
rm -rf "$out"

part() { printf '\n\033[1;36m# %s\033[0m\n' "$1"; }
run() {
  local word line='$'
  for word in "$@"; do [[ $word == *' '* ]] && line+=" \"$word\"" || line+=" $word"; done
  printf '\n\033[1m%s\033[0m\n' "$line"
  "$@"
}
# Some columns of a predicted file, one row a line.
show() {
  python - "$1" <<'CODE'
import csv, sys

with open(sys.argv[1], newline="", encoding="utf-8") as file:
    for row in csv.DictReader(file):
        text = " ".join(row["text"].split())
        print(f'{row["id"]}  {row["prediction"]:15} {float(row["score"]):.2f}  {text[:70]}{"..." if text[70:] else ""}')
CODE
}

part "Which queue does a support ticket belong to? The packaged encoder stays as it is; a head is fitted on 555 tickets."
run berthead fit $tickets/train.csv --label queue --adapt frozen --out $out/queue
run berthead predict $out/queue "the driver says he left it with a neighbour i do not have"
printf '\n(The first answer, %s seconds after the beginning.)\n' "$(($(date +%s) - began))"

part "200 other tickets say how good it is; 12 new ones are answered in a file that keeps their columns."
run berthead eval $out/queue $tickets/test.csv
run berthead predict $out/queue $tickets/new.csv --out $out/new-with-queue.csv
printf '\nThe columns id, prediction, score and text of it:\n'
show $out/new-with-queue.csv

part "What is in the model folder, and does it still give the answers that it gave when it was saved?"
run berthead info $out/queue
run berthead verify $out/queue

part "The same question with the encoder fitted too, for 4 epochs: on so few tickets it need not be better."
run berthead fit $tickets/train.csv --label queue --epochs 4 --lr 1e-4 --out $out/queue-full --quiet
run berthead eval $out/queue-full $tickets/test.csv

part "Any number of tags a ticket, and a number a ticket: how urgent it is, from 0 to 10."
run berthead fit $tickets/train.csv --task multilabel --label tags --adapt frozen --out $out/tags --quiet
run berthead predict $out/tags "THIRD time I write. Refund me or my lawyer will."
run berthead fit $tickets/train.csv --task regress --label urgency --adapt frozen --out $out/urgency --quiet
run berthead predict $out/urgency "the battery is hot and smells of burning"

part "A tag a word; tags together with what the sentence wants."
run berthead fit $tasks/commands-train.conll --task tag --epochs 8 --lr 5e-4 --batch 16 --out $out/tag --quiet
run berthead predict $out/tag "play Paper Moon Street by Otto Brandt in the garage tonight"
run berthead fit $tasks/commands-train.jsonl --task joint --epochs 8 --lr 5e-4 --batch 16 --out $out/joint --quiet
run berthead predict $out/joint "bring the heating in the attic to twenty degrees before dinner"

part "The answer to a question in a text; one of several replies."
run berthead fit $tasks/shops-train.json --task span --epochs 4 --lr 3e-4 --batch 16 --out $out/span --quiet
run berthead predict $out/span "What does shipping cost?" "We sell by mail. Shipping costs 9 crowns for orders of any size."
run berthead fit $tasks/replies-train.jsonl --task choose --epochs 3 --lr 1e-4 --batch 16 --out $out/choose --quiet
run berthead predict $out/choose "The lid came off in the first week." \
  "We have sent you a link to set a new password." "Please send it in, we repair it free of charge."

part "All models lie in $out/ (berthead info $out/queue). The same with your own file: berthead fit FILE.csv --label COLUMN --out MODEL"
