"""Records as text for a terminal."""

from __future__ import annotations

import json
from typing import Any

from berthead.errors import listed


def fit_report(record: dict[str, Any], out: str) -> str:
    """How a fit went: held-out scores beside the baselines.

    Args:
        record: what `Fitted.info` says.
        out: the model folder.

    Returns:
        Lines.
    """
    run, task = record["run"], record["task"]["name"]
    lines = [f"fitted {run['rows']:,} rows ({record['parameters']['adapt']}), best epoch {run['best_epoch']}"]
    if "metrics" in run:
        metric = run["settings"]["metric"]
        lines.append(f"held out: {run['held_out_rows']:,} rows")
        lines.append(score_table(run["metrics"]))
        for name, value in run.get("baselines", {}).items():
            lines.append(f"{_BASELINES[name]:<30} {metric} {value:.4f}")
        lines.append(f"{'this model':<30} {metric} {run['metrics'][metric]:.4f}")
    lines.append(f"model folder: {out}  ({task})")
    return "\n".join(lines)


_BASELINES = {"majority": "baseline: majority", "tfidf": "baseline: TF-IDF + linear"}


def score_table(scores: dict[str, Any]) -> str:
    """Metrics, under a table of the labels where there is one."""
    lines = []
    table = scores.get("per_label", [])
    if table:
        width = max(5, *(len(str(row["label"])) for row in table))
        lines.append(f"{'label':<{width}}  precision  recall      f1  support")
        for row in table:
            shares = f"{row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}"
            lines.append(f"{row['label']!s:<{width}}  {shares}  {row['support']:7,}")
    lines += [f"{name:<18} {value:,.4f}" if isinstance(value, float) else f"{name:<18} {value:,}"
              for name, value in scores.items() if isinstance(value, int | float)]  # fmt: skip
    return "\n".join(lines)


def info_text(record: dict[str, Any], folder: str) -> str:
    """The formula as fitted.

    Args:
        record: what `Fitted.info` says.
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
    if "adapter" in record:
        adapter = record["adapter"]
        size = f"{adapter['parameters']:,} parameters, a change of {adapter['base']}"
        rows.append(("adapter", f"{size}, sha256 {adapter['sha256']}"))
    if task["labels"]:
        rows.append(
            (f"{len(task['labels'])} labels", listed([json.dumps(x, ensure_ascii=False) for x in task["labels"]], 20))
        )
    elif "low" in task:
        rows.append(("range", f"{task['low']:g} to {task['high']:g}"))
    long = {
        "window": "longer texts in windows",
        "truncate": "of longer texts the beginning",
        "error": "no longer texts",
    }
    rows.append(("reads", f"at most {record['max_tokens']} tokens at once, {long[record['on_long']]}"))
    if "metrics" in run:
        scores = {name: value for name, value in run["metrics"].items() if isinstance(value, float)}
        rows.append(("held out", ", ".join(f"{name} {value:.4f}" for name, value in scores.items())))
    rows.append(("fitted on", f"{run['rows']:,} rows, sha256 {run['data_sha256']}, seed {run['seed']}"))
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in run["versions"].items())))
    rows.append(("transformers", f"{record['transformers']['class']}. {record['transformers']['note']}"))
    return "\n".join([folder, *(f"  {name:<13} {value}" for name, value in rows)])


def _head(head: dict[str, Any]) -> str:
    """A head in words."""
    if head["kind"] == "own":
        return f"{head['name']} of {head['package'] or 'another package'}"
    crf = ["conditional random field"] if head.get("crf") else []
    pooled = [f"{head['pooling']} pooling"] if "pooling" in head else ["one answer a token"]
    return ", ".join([*pooled, *crf])
