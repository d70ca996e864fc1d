"""Reports as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from berthead.errors import BertheadError, ModelError, counted
from berthead.function.precision_report import PrecisionReport
from berthead.function.scored import is_out_of_fold, scored_on
from berthead.storage.model_files import RECORD

if TYPE_CHECKING:
    from berthead.tasks import Task


def fit_report(record: dict[str, Any], out: str) -> str:
    """How a fit went: held-out scores compared with the baselines.

    Args:
        record: the result of `Fitted.info`.
        out: the model folder.

    Returns:
        Lines.
    """
    run, task = record["run"], record["task"]["name"]
    if said := run.get("described"):
        return f"{described_text(said)}\nmodel folder: {out}  ({task})"
    lines = [f"fitted {counted(run['rows'], 'row')} ({record['parameters']['adapt']}), {_how(run)}"]
    if "metrics" in run:
        metric = run["settings"]["metric"]
        lines.append(f"scored: {scored_on(run)}")
        lines.append(score_table(run["metrics"]))
        for name, value in run.get("baselines", {}).items():
            lines.append(f"{_BASELINES[name]:<30} {metric} {value:.4f}")
        compared = run.get("compared", run["metrics"])
        on = f" (on {counted(compared['rows'], 'row')}, as the baselines)" if "compared" in run else ""
        lines.append(f"{'this model':<30} {metric} {compared[metric]:.4f}{on}")
    lines += [f"{f'precision {name}':<30} {words}" for name, words in gate_rows(run)]
    lines.append(f"model folder: {out}  ({task})")
    return "\n".join(lines)


def described_text(said: dict[str, Any]) -> str:
    """What a function whose labels are known by texts about them has learnt, in a few words."""
    return f"nothing was learnt: {said['labels']} labels by {counted(said['texts'], 'text')} about them"


def _how(run: dict[str, Any]) -> str:
    """How the parameters were found, in a few words."""
    if solved := run.get("solved"):
        return f"head solved on {solved['vectors']} vectors, penalty {solved['penalty']:.2g}"
    # Without held-out rows nothing chooses an epoch: the last one is kept.
    return f"best epoch {run['best_epoch']}" if run["held_out_rows"] else counted(run["best_epoch"], "epoch")


_BASELINES = {"majority": "baseline: majority", "tfidf": "baseline: TF-IDF + linear"}


def gate_rows(run: dict[str, Any]) -> list[tuple[str, str]]:
    """Lower precisions, and how a fit measured them against float32.

    Args:
        run: `run` in a function's record.

    Returns:
        Pairs of precision and text; empty if nothing was measured.
    """
    if "gate" not in run:
        return []
    report = PrecisionReport.from_json(run["gate"])
    return [(name, report.verdict(name)) for name in report.verdicts]


def score_table(scores: dict[str, Any]) -> str:
    """Metrics, below a table of the labels or of the targets if there is one."""
    table = scores.get("per_label", [])
    shares = [f"{row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}" for row in table]
    lines = _label_table("precision  recall      f1", table, shares) + _target_table(scores.get("per_target", []))
    lines += [f"{name:<18} {value:,.4f}" if isinstance(value, float) else f"{name:<18} {value:,}"
              for name, value in scores.items() if isinstance(value, int | float)]  # fmt: skip
    return "\n".join(lines)


P = ParamSpec("P")


def _of_a_record(report: Callable[P, str]) -> Callable[P, str]:
    """A report of a record that somebody may have edited: what is no whole record is a ModelError."""

    @wraps(report)
    def checked(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return report(*args, **kwargs)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            if isinstance(error, BertheadError):
                raise
            fix = "Copy the folder again."
            raise ModelError(RECORD, f"is not a whole record ({type(error).__name__}: {error})", "", fix) from error

    return checked


@_of_a_record
def info_text(record: dict[str, Any], folder: str) -> str:
    """The formula as fitted.

    Args:
        record: the result of `Fitted.info`, and, if known, `moved`: how far each layer of theta-tilde is from
            theta-hat.
        folder: the model folder.

    Returns:
        Lines.
    """
    parameters, task, head, run = record["parameters"], record["task"], record["head"], record["run"]
    same = parameters["theta_is_pretrained"]
    learnt = "θ" if parameters["adapt"] == "full" else f"{parameters['adapt']} of θ"
    theta = "θ̃ = θ̂ (frozen: only ω was fitted)" if same else f"θ̃ ≠ θ̂ ({learnt} and ω were fitted)"

    rows = [
        ("y", "Predict_ω̃( BERT_θ̃(x) )" if not same else "Predict_ω̃( BERT_θ̂(x) )"),
        ("task", f"{task['name']} of {task['package']}" if task.get("package") else task["name"]),
        ("x", " + ".join(f'"{record["columns"][role]}"' for role in ("text", "pair") if record["columns"][role])),
        ("encoder", f"{parameters['pretrained']['name']}, {parameters['theta_parameters']:,} parameters"),
        ("head", f"{_head(head)}, {head['outputs']} outputs, {parameters['omega_parameters']:,} parameters"),
        ("θ", f"sha256 {parameters['theta_sha256']}"),
        ("θ̂", f"sha256 {parameters['pretrained']['theta_sha256']}"),
        ("ω", f"sha256 {parameters['omega_sha256']}"),
        ("", theta),
    ]
    if not same:
        # Layer by layer the relative norm, as in a table of its own.
        name = parameters["pretrained"]["name"]
        away = f"not shown: the encoder {name} with that sha256 was not found"
        rows.append(("θ̃ − θ̂", moved_text(record["moved"]) if record.get("moved") else away))
    if "replaced" in run:
        rows.append(("", "θ and ω were replaced after the fit; there are no scores of these"))
    if "adapter" in record:
        adapter = record["adapter"]
        size = f"{adapter['parameters']:,} parameters, a change of {adapter['base']}"
        rows.append(("adapter", f"{size}, sha256 {adapter['sha256']}"))
    rows += _task_of(record).facts()
    long = {
        "window": "longer texts are read in windows",
        "truncate": "longer texts are truncated",
        "error": "longer texts are refused",
    }
    rows.append(("reads", f"at most {record['max_tokens']} tokens at once, {long[record['on_long']]}"))
    if "metrics" in run:
        scores = {name: value for name, value in run["metrics"].items() if isinstance(value, float)}
        rows.append(
            (
                "out of fold" if is_out_of_fold(run) else "held out",
                ", ".join(f"{name} {value:.4f}" for name, value in scores.items()),
            )
        )
    rows += gate_rows(run)
    if "soup" in run:
        rows.append(("soup", f"the mean of {_of_members(run['soup'])}; what the first of them was fitted on:"))
    if said := run.get("described"):
        rows.append(("described", described_text(said)))
    rows.append(("fitted on", f"{counted(run['rows'], 'row')}, sha256 {run['data_sha256']}, seed {run['seed']}"))
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in run["versions"].items())))
    if "export" in record:
        rows.append(
            ("onnx", f"opset {record['export']['opset']}; the rows of a call have the same length, without padding")
        )
    else:
        rows.append(("transformers", f"{record['transformers']['class']}. {record['transformers']['note']}"))
    return "\n".join([folder, *(f"  {name:<13} {value}" for name, value in rows)])


@_of_a_record
def joined_text(record: dict[str, Any], folder: str) -> str:
    """Several functions on one encoder.

    Args:
        record: the result of `Fitted.info`.
        folder: the joined folder.

    Returns:
        Lines.
    """
    functions, layers = record["functions"], record["shared_layers"]
    width = max(map(len, functions))
    shared = (
        "the embeddings"
        if layers == 0
        else f"the embeddings and {counted(layers, 'layer')}"
        if layers > 0
        else "no layer"
    )
    lines = [f"{folder}  {counted(len(functions), 'function')} on {record['pretrained']['name']}; all share {shared}"]
    for name, one in functions.items():
        answers = _task_of(one).answers_in_words()
        lines.append(f"  {name:<{width}}  {one['task']['name']}, {one['parameters']['adapt']}: {answers}")
    return "\n".join(lines)


def _task_of(record: dict[str, Any]) -> Task:
    """The task in the result of `Fitted.info`."""
    from berthead.tasks import find_task

    said = record["task"]
    return find_task(said["name"], said.get("package")).from_json(said)


def moved_text(moved: dict[str, float | None]) -> str:
    """Relative norms of the layers on one line."""
    shares = {layer: "from 0" if share is None else f"{100 * share:.3g} %" for layer, share in moved.items()}
    return ", ".join(f"{layer} {share}" for layer, share in shares.items())


def compare_text(found: dict[str, Any], names: tuple[str, str], out: str | None) -> str:
    """Two functions on the same input.

    Args:
        found: the result of `Comparison.to_dict`.
        names: of both functions.
        out: the file that holds all rows with other answers, or None.

    Returns:
        Lines.
    """
    rows, flips = found["rows"], found["flips"]
    lines = [f"A  {names[0]}", f"B  {names[1]}"]
    lines.append(
        f"the same answer in {rows - len(flips):,} of {counted(rows, 'row')} ({100 * found['agreement']:.2f} %)"
    )
    if right := found["right"]:
        sides = ("both", "only_a", "only_b", "neither")
        words = ("both", "only A", "only B", "neither")
        counts = [f"{word} {right[side]:,}" for word, side in zip(words, sides, strict=True)]
        lines.append(f"right: {', '.join(counts)}")
    if found["test"]:
        lines.append(f"{found['test']['name']}: p = {found['test']['p']:.4g}")
    if found["metrics"]:
        scored = f"{counted(found['scored'], 'row')} scored"
        width = max(20, *map(len, found["metrics"]))
        lines += ["", f"{scored:<{width}} {'A':>10} {'B':>10} {'B − A':>10}"]
        lines += [f"{name:<{width}} {one['a']:>10,.4f} {one['b']:>10,.4f} {one['b'] - one['a']:>+10.4f}"
                  for name, one in found["metrics"].items()]  # fmt: skip
    for table in ("per_label", "per_intent"):
        if found[table]:
            lines += ["", *_label_changes(found[table])]
    if flips:
        lines += ["", f"other answers in {counted(len(flips), 'row')}:", *(_flip(one) for one in flips[:SHOWN_FLIPS])]
        more = len(flips) - SHOWN_FLIPS
        lines += [f"... and {more:,} more{f' in {out}' if out else ': --out FILE writes all'}"] if more > 0 else []
    moved = moved_text(found["moved"]) if found["moved"] else "not comparable: the architectures differ"
    return "\n".join([*lines, "", f"from A to B the parameters moved: {moved}"])


# Rows with other answers that a terminal gets to see.
SHOWN_FLIPS = 10


def _label_changes(table: list[dict[str, Any]]) -> list[str]:
    shares = ["  ".join(f"{_change(row, name):>16}" for name in ("precision", "recall", "f1")) for row in table]
    return _label_table(f"{'precision A → B':>16}  {'recall A → B':>16}  {'f1 A → B':>16}", table, shares)


def _change(row: dict[str, Any], name: str) -> str:
    a, b = (f"{side[name]:.4f}" if side else "-" for side in (row["a"], row["b"]))
    return f"{a} → {b}"


def _label_table(heads: str, table: list[dict[str, Any]], shares: list[str]) -> list[str]:
    """Labels, their scores as text under `heads`, and how often each is the target; empty without labels."""
    width = max([5, *(len(str(row["label"])) for row in table)])
    lines = [f"{row['label']!s:<{width}}  {one}  {row['support']:7,}" for row, one in zip(table, shares, strict=True)]
    return [f"{'label':<{width}}  {heads}  support", *lines] if table else []


def _target_table(table: list[dict[str, Any]]) -> list[str]:
    """Targets and the scores of their numbers; empty if there is one number a row."""
    if not table:
        return []
    names = [name for name in table[0] if name not in ("target", "rows")]
    width = max([6, *(len(row["target"]) for row in table)])
    cells = [[f"{row[name]:,.4f}" for name in names] for row in table]
    widths = [max(len(name), *(len(row[place]) for row in cells)) for place, name in enumerate(names)]

    def line(first: str, texts: list[str], last: str) -> str:
        shown = (f"{text:>{wide}}" for text, wide in zip(texts, widths, strict=True))
        return "  ".join([f"{first:<{width}}", *shown, f"{last:>7}"])

    rows = (line(row["target"], texts, f"{row['rows']:,}") for row, texts in zip(table, cells, strict=True))
    return [line("target", names, "rows"), *rows]


def _flip(flip: dict[str, Any]) -> str:
    verdicts = {True: " (right)", False: " (wrong)", None: ""}
    sides = [f"{name} {_short(flip[name.lower()])}{verdicts[flip[f'{name.lower()}_right']]}" for name in "AB"]
    wanted = [] if flip["target"] is None else [f"wanted {_short(flip['target'])}"]
    return "  ".join([flip["where"], *sides, *wanted, _short(flip["text"])])


def _short(value: Any, most: int = 60) -> str:
    """A value as JSON, cut off if it is long."""
    from berthead.tasks.cells import number_text

    if isinstance(value, dict):
        value = {key: float(number_text(one)) if isinstance(one, float) else one for key, one in value.items()}
    text = number_text(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def bench_text(found: dict[str, Any], model: str) -> str:
    """How fast a function is, where the time goes, and how well lower precisions agree with fp32.

    Args:
        found: the result of `Bench.to_dict`.
        model: the model folder.

    Returns:
        Lines.
    """
    width = max(12, *(len(one["kernels"]) for one in found["runs"]))
    sizes = f"{found['rows']:,} {found['of']} rows, {found['tokens']:,} tokens"
    lines = [
        f"{model}  {sizes}, padding {100 * found['padding']:.1f} %",
        f"{found['gpus'] and found['gpus'] + ', '}{found['cpu']}, {found['threads']} threads",
        "",
        f"{'precision':<10} {'kernels':<{width}} {'rows/s':>9} {'tokens/s':>10} {'x fp32':>7} {'Gop/s':>7} "
        f"{'of peak':>8}",
    ]
    for one in found["runs"]:
        rates = f"{one['rows_per_second']:>9,.0f} {one['tokens_per_second']:>10,.0f} {one['gain']:>7.2f}"
        work = f"{one['operations_per_second'] / 1e9:>7,.0f} {100 * one['share_of_peak']:>7.1f}%"
        lines.append(f"{one['precision']:<10} {one['kernels']:<{width}} {rates} {work}")
    stages = list(found["runs"][0]["stages"])
    lines += ["", f"{'share of':<10} " + " ".join(f"{name:>10}" for name in stages)]
    for one in found["runs"]:
        lines.append(f"{one['precision']:<10} " + " ".join(f"{100 * one['stages'][name]:>9.1f}%" for name in stages))
    gate = [f"{name:<10} {words}" for name, words in gate_rows({"gate": found["gate"]})] if found["gate"] else []
    kept = ["the result is kept for --precision auto on this machine"] if found["kept"] else []
    return "\n".join([*lines, *([""] if gate else []), *gate, *kept, "", f"auto takes {found['auto']}"])


def soup_text(record: dict[str, Any], names: list[str], out: str) -> str:
    """Which functions a soup is made of, and how it scores compared with them.

    Args:
        record: the result of `Fitted.info`.
        names: of the members, in their order.
        out: the model folder.

    Returns:
        Lines.
    """
    made, scores = record["run"]["soup"], record["run"].get("metrics")
    metric, width = made["metric"], max(4, *map(len, names))
    lines = []
    for name, member in zip(names, made["members"], strict=True):
        score = "" if member["score"] is None else f"  {metric} {member['score']:.4f}"
        lines.append(f"{name:<{width}}{score}{'  in the soup' if member['chosen'] else ''}")
    if scores:
        lines.append(f"{'soup':<{width}}  {metric} {scores[metric]:.4f}")
    return "\n".join([*lines, f"model folder: {out}  (the mean of {_of_members(made)})"])


def _of_members(made: dict[str, Any]) -> str:
    return f"{sum(one['chosen'] for one in made['members'])} of {len(made['members'])} functions, {made['recipe']}"


def _head(head: dict[str, Any]) -> str:
    """A head in words."""
    if head["kind"] == "own":
        return f"{head['name']} of {head['package'] or 'another package'}"
    crf = ["conditional random field"] if head.get("crf") else []
    pooled = [f"{head['pooling']} pooling"] if "pooling" in head else ["one answer a token"]
    return ", ".join([*pooled, *crf])
