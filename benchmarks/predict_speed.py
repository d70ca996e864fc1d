"""Rows a second of a fitted function: ours beside the engines that people serve BERT with, in turn, in one run.

    python benchmarks/predict_speed.py run --data DATA --peers PYTHON [--case NAME ...] [--rounds 3] [--out FILE]
    python benchmarks/predict_speed.py table FILE...
    python benchmarks/predict_speed.py plot FILE... --to docs/predict_speed.svg

`run` fits what each case needs once (kept in --work), appends one JSON line per measurement to FILE and prints the
table. PYTHON is the interpreter of a virtual environment of the peers:

    pip install torch==2.13.0 transformers onnx onnxruntime openvino nncf

All engines apply the same model folder (pooled by BERT's pooler, so that transformers loads it) to the same texts,
at most 512 tokens of each, from texts in memory to labels, tokenising included. Each runs in a process of its own,
warms up on all rows, and is timed on the second pass; a round is one such process of each engine, and the table gives
the medians of the rounds. Peers sort by length and pad batches of 32, except the pipeline, which is called as its users
call it. `base` is an encoder of bert-base's sizes with random weights: its labels mean nothing, its speed does.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from lines import Lines, keep, parsed, verbs

BATCH, MAX_TOKENS = 32, 512
SAMPLE = 64  # texts that OpenVINO's int8 is calibrated on
PLAIN, PIPELINE = "transformers, sorted, fp32", "transformers pipeline"
OURS = ("berthead fp32", "berthead bf16", "berthead int8")
PEERS = (PLAIN, PIPELINE, "transformers, sorted, bf16", "ONNX Runtime fp32", "ONNX Runtime int8",
         "OpenVINO bf16", "OpenVINO int8")  # fmt: skip

Run = Callable[[], list[str]]


@dataclass(frozen=True)
class Case:
    """Texts and the function applied to them.

    Args:
        encoder: `minilm` or `base`.
        fitted: the data set whose labels are predicted.
        read: how many test rows of each data set are read, one data set after the other in turn.
        fit_rows: training rows.
        adapt: what is fitted.
        engines: who takes turns.
    """

    encoder: str
    fitted: str
    read: dict[str, int]
    fit_rows: int
    adapt: str
    engines: tuple[str, ...] = (*PEERS, *OURS)


SETS = {"sentence-polarity": ("text", "label"), "medical-abstracts": ("abstract", "condition")}
SHORT, LONG = SETS
FEWER = (PLAIN, PIPELINE, "ONNX Runtime fp32", "OpenVINO bf16", "OpenVINO int8", *OURS)
CASES = {
    "minilm, short": Case("minilm", SHORT, {SHORT: 1600}, 6000, "full"),
    "minilm, long": Case("minilm", LONG, {LONG: 160}, 1000, "full"),
    "minilm, mixed": Case("minilm", SHORT, {SHORT: 400, LONG: 100}, 6000, "full"),
    "base, short": Case("base", SHORT, {SHORT: 256}, 256, "frozen", FEWER),
    "base, long": Case("base", LONG, {LONG: 24}, 64, "frozen", FEWER),
    "base, mixed": Case("base", SHORT, {SHORT: 64, LONG: 16}, 256, "frozen", FEWER),
}


def rows_of(data: Path, folder: str, split: str, count: int) -> list[dict[str, str]]:
    text, label = SETS[folder]
    with open(data / folder / f"{split}.csv", newline="", encoding="utf-8") as file:
        rows = [{"text": row[text], "label": row[label]} for row in csv.DictReader(file)]
    step = max(1, len(rows) // count)  # files may be sorted by their labels
    return rows[::step][:count]


def texts_of(case: Case, data: Path) -> list[str]:
    texts = [row["text"] for folder, count in case.read.items() for row in rows_of(data, folder, "test", count)]
    return texts[::3] + texts[1::3] + texts[2::3]  # short and long ones stand among each other


def base_encoder(work: Path) -> Path:
    """An encoder of bert-base's sizes with random weights and the packaged tokenizer."""
    import torch
    from fit_quality import encoder_folder
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = work / "base"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        BertModel(BertConfig()).save_pretrained(folder)
        AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)
    return folder


def fitted_model(case: Case, data: Path, work: Path) -> Path:
    """The case's model folder, fitted where it is not there."""
    import berthead

    folder = work / f"{case.encoder}-{case.fitted}"
    if not folder.exists():
        encoder = "minilm" if case.encoder == "minilm" else str(base_encoder(work))
        berthead.fit(
            rows_of(data, case.fitted, "train", case.fit_rows), encoder=encoder, pooling="pooler", adapt=case.adapt,
            epochs=3, max_tokens=MAX_TOKENS, on_long="truncate", valid="0.1", quiet=True,
        ).save(folder)  # fmt: skip
    return folder


def ours(engine: str, model: Path, texts: list[str], threads: int) -> Run:
    import berthead
    from berthead.engine.cpu import use_threads
    from berthead.records import Example

    use_threads(threads)
    predictor = berthead.load(model, precision=engine.split()[-1]).predictor
    examples = [Example(text) for text in texts]
    return lambda: [one.answer for one in predictor.predict(examples)]


def peer(engine: str, model: Path, texts: list[str], threads: int) -> Run:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging, pipeline

    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    names = network.config.id2label
    if engine == PIPELINE:
        pipe = pipeline("text-classification", model=network, tokenizer=tokenizer, device="cpu")
        return lambda: [one["label"] for one in pipe(texts, batch_size=BATCH, truncation=True, max_length=MAX_TOKENS)]
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))

    def encoded(rows: list[int], kind: str) -> Any:
        chosen = [texts[row] for row in rows]
        return tokenizer(chosen, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors=kind)

    if engine.startswith("transformers"):
        if engine.endswith("bf16"):
            network.to(torch.bfloat16)
        best, kind = (lambda inputs: network(**inputs).logits.argmax(-1).tolist()), "pt"
    else:
        graph = exported(network, dict(encoded([0, 1], "pt")), model.with_suffix(".onnx"))
        sample = [encoded([row], "np") for row in range(min(SAMPLE, len(texts)))]
        best, kind = (onnx_runtime if engine.startswith("ONNX") else openvino)(engine, graph, sample, threads), "np"

    def run() -> list[str]:
        labels = [""] * len(texts)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            for row, number in zip(rows, best(encoded(rows, kind)), strict=True):
                labels[row] = names[number]
        return labels

    return run


def exported(network: Any, example: dict[str, Any], path: Path) -> Path:
    """The network as an ONNX file."""
    import torch

    if path.exists():
        return path
    network.config._attn_implementation = "eager"
    names = ["input_ids", "attention_mask", "token_type_ids"]

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = self.network(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits
            return values

    part = path.with_suffix(".part")
    torch.onnx.export(
        Logits(), tuple(example[name] for name in names), str(part), input_names=names, output_names=["logits"],
        opset_version=17, dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names}, dynamo=False,
    )  # fmt: skip
    return part.rename(path)


def onnx_runtime(engine: str, graph: Path, sample: list[Any], threads: int) -> Callable[[Any], list[int]]:
    import onnxruntime

    if engine.endswith("int8"):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantized = graph.with_suffix(".int8.onnx")
        if not quantized.exists():
            quantize_dynamic(str(graph), str(quantized), weight_type=QuantType.QInt8, per_channel=True)
        graph = quantized
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))[0].argmax(-1).tolist()  # type: ignore[no-any-return]


def openvino(engine: str, graph: Path, sample: list[Any], threads: int) -> Callable[[Any], list[int]]:
    import openvino

    core = openvino.Core()
    path = graph.with_suffix(".int8.xml")
    if engine.endswith("int8") and not path.exists():
        import nncf

        kind, rows = nncf.ModelType.TRANSFORMER, nncf.Dataset(sample, dict)
        openvino.save_model(nncf.quantize(core.read_model(graph), rows, model_type=kind, subset_size=SAMPLE), path)
    read = core.read_model(path if engine.endswith("int8") else graph)
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(read, "CPU", settings)
    return lambda inputs: compiled(dict(inputs))[0].argmax(-1).tolist()  # type: ignore[no-any-return]


def measure(engine: str, model: Path, texts: list[str], threads: int) -> dict[str, Any]:
    """One engine's second pass, in this process."""
    warnings.filterwarnings("ignore")
    run = (ours if engine in OURS else peer)(engine, model, texts, threads)
    run()
    start = time.perf_counter()
    labels = run()
    return {"seconds": time.perf_counter() - start, "labels": labels}


def measured(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The case's measurements, round by round."""
    case = CASES[name]
    texts, model = texts_of(case, args.data), fitted_model(case, args.data, args.work)
    source = args.work / "texts.json"
    source.write_text(json.dumps(texts))
    reference: list[str] = []
    for turn in range(args.rounds):
        for engine in case.engines:
            python = sys.executable if engine in OURS else args.peers
            command = [python, __file__, "one", engine, str(model), str(source), str(args.threads)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{engine}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            reference = reference or found["labels"]  # of the first: transformers in fp32
            same = sum(a == b for a, b in zip(found["labels"], reference, strict=True)) / len(texts)
            yield {"case": name, "engine": engine, "round": turn, "rows": len(texts),
                   "characters": sum(map(len, texts)), "seconds": found["seconds"], "same": same}  # fmt: skip


def speeds(lines: Lines, case: str) -> dict[str, tuple[float, float]]:
    """Median rows a second and mean share of the reference's labels of each engine of a case."""
    found = {}
    for engine in dict.fromkeys(line["engine"] for line in lines if line["case"] == case):
        some = [line for line in lines if (line["case"], line["engine"]) == (case, engine)]
        speed = statistics.median(line["rows"] / line["seconds"] for line in some)
        found[engine] = speed, statistics.mean(line["same"] for line in some)
    return found


def print_table(lines: Lines) -> None:
    """One row a case and engine."""
    print("| case | engine | rounds | rows/s | times the pipeline | berthead int8 over it | same labels |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in dict.fromkeys(line["case"] for line in lines):
        found = speeds(lines, case)
        if not found.keys() >= {PIPELINE, OURS[-1]}:
            continue  # it was broken off
        for engine, (speed, same) in found.items():
            rounds = sum((line["case"], line["engine"]) == (case, engine) for line in lines)
            ratios = speed / found[PIPELINE][0], found[OURS[-1]][0] / speed
            print(f"| {case} | {engine} | {rounds} | {speed:,.{0 if speed >= 100 else 1}f} "
                  f"| {ratios[0]:.2f} | {ratios[1]:.2f} | {same:.2%} |")  # fmt: skip


def plot(lines: Lines, to: Path) -> None:
    """Bars of rows a second, one panel a case."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "berthead"  # equal figures are equal files
    cases = list(dict.fromkeys(line["case"] for line in lines))
    across = min(3, len(cases))
    down = -(-len(cases) // across)
    figure, panels = pyplot.subplots(down, across, figsize=(4.6 * across, 3.4 * down), squeeze=False)
    for panel, case in zip(panels.flat, cases, strict=False):
        found = speeds(lines, case)
        names = list(found)[::-1]
        bars = panel.barh(names, [found[name][0] for name in names],
                          color=["#c2571a" if name in OURS else "#8aa0b4" for name in names])  # fmt: skip
        panel.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        panel.set_title(f"{case}: rows/s", fontsize=10)
        panel.margins(x=0.18)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels.flat[len(cases) :]:
        panel.set_visible(False)
    figure.tight_layout()
    figure.savefig(to, metadata={"Date": None})


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        engine, model, source, threads = sys.argv[2:]
        print(json.dumps(measure(engine, Path(model), json.loads(Path(source).read_text()), int(threads))))
        return
    if sys.argv[1:2] == ["plot"]:
        *files, flag, to = sys.argv[2:]
        assert flag == "--to", __doc__
        plot([json.loads(line) for file in files for line in Path(file).read_text().splitlines()], Path(to))
        return
    parser, run = verbs(__doc__, "predict_speed.jsonl")
    run.add_argument("--peers", default=sys.executable, help="the interpreter that has the peers")
    run.add_argument("--work", type=Path, default=Path("predict_speed"), help="keeps fitted and exported models")
    run.add_argument("--case", action="append", choices=CASES)
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--threads", type=int, default=2)
    args = parsed(parser, print_table)
    args.work.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in args.case or CASES:
        for line in measured(name, args):
            keep(line, args.out)
            lines.append(line)
    print_table(lines)


if __name__ == "__main__":
    main()
