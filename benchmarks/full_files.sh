#!/usr/bin/env bash
# Fit and score on whole public data sets with the command line's defaults; one line a data set.
#
#     bash benchmarks/full_files.sh DATA_DIR OUT_DIR [NAME...]
set -euo pipefail
data=$1 out=$2
shift 2
mkdir -p "$out"

run() { # name, folder, metrics to show, fit flags...
  local name=$1 folder=$2 show=$3
  shift 3
  run_files "$name" "$folder/train.csv" "$folder/test.csv" "$show" "$@"
}

run_files() { # name, training file, test file, metrics to show, fit flags...
  local name=$1 train=$2 test=$3 show=$4
  shift 4
  [ -z "${only:-}" ] || [[ " $only " == *" $name "* ]] || return 0
  local started=$SECONDS
  berthead fit "$data/$train" "$@" --out "$out/$name" --overwrite --quiet > "$out/$name.fit.txt" 2>&1
  local seconds=$((SECONDS - started))
  berthead eval "$out/$name" "$data/$test" --json > "$out/$name.eval.json" 2> "$out/$name.eval.txt"
  python - "$name" "$seconds" "$show" "$out/$name.eval.json" "$*" <<'PY'
import json, sys
name, seconds, show, path, flags = sys.argv[1:]
scores = json.load(open(path))
shown = ", ".join(f"{key} {scores[key]:.3f}" for key in show.split(","))
print(f"| {name} | `{flags}` | {scores['rows']:,} | {shown} | {int(seconds)} |", flush=True)
PY
}

only="$*"
echo "| data | flags of \`berthead fit\` | test rows | scores | seconds to fit |"
echo "| --- | --- | --- | --- | --- |"
run polarity sentence-polarity accuracy,macro_f1 --text text --label label
run polarity-frozen sentence-polarity accuracy,macro_f1 --text text --label label --adapt frozen
run abstracts-frozen medical-abstracts accuracy,macro_f1 --text abstract --label condition --adapt frozen
run abstracts medical-abstracts accuracy,macro_f1 --text abstract --label condition
run sick-entailment sick accuracy,macro_f1 --text sentence_A --pair sentence_B --label entailment
run sick-relatedness sick pearson,spearman,mae --task regress --text sentence_A --pair sentence_B --label relatedness
run emotions-frozen goemotions micro_f1,macro_f1,average_precision --task multilabel --text text --label emotions --adapt frozen
run emotions goemotions micro_f1,macro_f1,average_precision --task multilabel --text text --label emotions --epochs 2 --lr 1e-4
wnut=wnut17/CONLL-format/data
run_files wnut17 $wnut/train/wnut17train.conll $wnut/test/emerging.test.annotated f1,strict_f1 --task tag --epochs 4 --lr 3e-4
run_files snips-slots snips/train.jsonl snips/test.jsonl f1,strict_f1 --task tag --lr 3e-4
run_files snips-joint snips/train.jsonl snips/test.jsonl f1,intent_accuracy,exact_match --task joint --lr 3e-4
run_files policyqa policyqa/dev.json policyqa/test.json exact,f1 --task span --max-tokens 256 --lr 2e-4
run_files arc arc/train.jsonl arc/test.jsonl accuracy --task choose --lr 1e-4
run_files balanced-copa balanced-copa/train.jsonl balanced-copa/test.jsonl accuracy --task choose --lr 1e-4
for policy in window truncate; do
  for seed in 0 1 2; do
    run reviews-$policy-$seed movie-reviews accuracy,macro_f1 --adapt frozen --on-long $policy --seed $seed
  done
done
