"""A long job from file to file: memory and speed over time, killed and resumed on the way, and once more in shards.

    python benchmarks/long_job.py run [--model FOLDER] [--rows 1000000] [--kills 2] [--shards 2] [--out FILE]
    python benchmarks/long_job.py table FILE...
    python benchmarks/long_job.py plot FILE... --to docs/long_job.svg

`run` makes up short sentences, predicts them with `berthead predict`, and looks at the process every few seconds: its
resident memory, and the rows that it has written so far, part by part. It is killed (SIGKILL) where an equal share of
the rows is done, and resumed. Then the same rows are computed in shards, one after the other, and gathered. Checked is
that all rows come out in their order, that both files are the same bytes, and that the scores of the shards add up,
digit by digit, to those of the whole. Each sample and each check is a JSON line in FILE. FOLDER is any model folder
that reads single texts; by default one is fitted on the sample tickets, with minilm, frozen.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from lines import Lines, keep

ROOT = Path(__file__).resolve().parent.parent
WORDS = re.findall(
    r"\w+",
    """the parcel order driver never came arrived late early broken my our their account card invoice refund please why
    when where is was not again still waiting for since monday tuesday last week screen app phone charger box door
    neighbour wrong size colour twice paid cancel plan reset password email thanks nobody answered help""",
)


def make_rows(path: Path, rows: int) -> None:
    """Sentences of 3 to 18 words, the same ones each time."""
    chance = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write("id,text\n")
        file.writelines(f"{n},{' '.join(chance.choices(WORDS, k=chance.randint(3, 18)))}\n" for n in range(rows))


def rows_done(folder: Path) -> int:
    """Rows in whole parts, and those of the part that is being written."""
    done: dict[int, int] = {}
    # The part being written first: it may be whole when we come to the others.
    for path in sorted(folder.glob("*"), key=lambda path: not path.name.startswith(".")) if folder.is_dir() else ():
        number = re.fullmatch(r"\.?(\d+)\.(json|csv\.part-\d+)", path.name)
        try:
            if number and path.suffix == ".json":
                done[int(number[1])] = json.loads(path.read_bytes())["counts"]["rows"]
            elif number:
                done[int(number[1])] = path.read_bytes().count(b"\n")
        except OSError:  # renamed or removed while we looked
            continue
    return sum(done.values())


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


def watched(
    run: str, command: list[str], folder: Path, rows: int, every_s: float, kill_at: Iterable[int] = ()
) -> Iterator[dict[str, Any]]:
    """Run a command to its end, killing and resuming it; a line for each sample.

    Args:
        run: what it is called.
        command: without --resume.
        folder: its parts.
        rows: of the whole job.
        every_s: seconds between samples.
        kill_at: rows at which it is killed.
    """
    begun, kills, resumed = time.monotonic(), list(kill_at), False
    # A shard looks at its own parts only.
    before = rows_done(folder)
    last = begun, 0
    while True:
        process = subprocess.Popen([*command, *(["--resume"] if resumed else [])], stderr=subprocess.DEVNULL)
        killed = False
        while process.poll() is None:
            time.sleep(every_s if not kills else min(every_s, 0.5))
            now, done, rss = time.monotonic(), rows_done(folder) - before, rss_mib(process.pid)
            if kills and done >= kills[0]:
                process.kill()
                process.wait()
                kills.pop(0)
                killed = resumed = True
                yield {"run": run, "seconds": now - begun, "rows": done, "event": "killed"}
                break
            if rss and now - last[0] >= every_s and done >= last[1]:
                rate = (done - last[1]) / (now - last[0])
                yield {"run": run, "seconds": now - begun, "rows": done, "rate": rate, "rss_mib": rss}
                last = now, done
        if killed:
            # A part that was begun is begun anew.
            last = time.monotonic(), rows_done(folder) - before
            continue
        assert process.returncode == 0, (process.returncode, command)
        # The parts of a whole job are gone by now.
        done = rows_done(folder) - before if folder.is_dir() else rows
        yield {"run": run, "seconds": time.monotonic() - begun, "rows": done, "event": "done"}
        return


def sums(files: Iterable[Path], header: list[str] | None = None) -> tuple[Decimal, Counter[str], list[int]]:
    """The sum of the scores, digit by digit; how often each label; the rows' ids, as they come."""
    total, labels, ids = Decimal(0), Counter[str](), list[int]()
    for path in files:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, header):
                total += Decimal(row["score"])
                labels[row["prediction"]] += 1
                ids.append(int(row["id"]))
    return total, labels, ids


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fitted(work: Path) -> Path:
    """A classifier of tickets on the packaged encoder."""
    import berthead

    folder = work / "model"
    if not folder.exists():
        tickets = ROOT / "sample" / "tickets" / "train.csv"
        berthead.fit(tickets, label="queue", adapt="frozen", out=folder, quiet=True)
    return folder


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The job whole, killed on the way; then in shards; then what was checked."""
    args.work.mkdir(parents=True, exist_ok=True)
    model, source = args.model or fitted(args.work), args.work / "in.csv"
    make_rows(source, args.rows)
    whole, shared = args.work / "whole.csv", args.work / "shards.csv"
    command = [sys.executable, "-m", "berthead", "predict", str(model), str(source), "--precision", args.precision]
    command += ["--part-rows", str(args.part_rows)]
    kill_at = [args.rows * number // (args.kills + 1) for number in range(1, args.kills + 1)]
    yield from watched(
        "one process", [*command, "--out", str(whole)], Path(f"{whole}.parts"), args.rows, args.every, kill_at
    )
    total, labels, ids = sums([whole])
    assert ids == list(range(args.rows)), "rows are missing or out of order"
    folder, shard_sums = Path(f"{shared}.parts"), []
    for number in range(1, args.shards + 1):
        shard = f"{number}/{args.shards}"
        yield from watched(
            f"shard {shard}", [*command, "--out", str(shared), "--shard", shard], folder, args.rows, args.every
        )
        records = [(path, json.loads(path.read_bytes())["shard"]) for path in sorted(folder.glob("0*[0-9].json"))]
        own = [path.with_suffix(".csv") for path, whose in records if whose == shard]
        shard_sums.append(sums(own, ["id", "text", "prediction", "score"]))
    if args.shards:
        subprocess.run([sys.executable, "-m", "berthead", "gather", str(shared), "--quiet"], check=True)
        assert sum(one for one, _, _ in shard_sums) == total, "the shards' scores do not add up"
        assert sum((one for _, one, _ in shard_sums), Counter()) == labels, "the shards' labels do not add up"
        assert sorted(itertools.chain(*(one for _, _, one in shard_sums))) == ids, "the shards' rows are not all rows"
        assert sha256(shared) == sha256(whole), "shards and one process wrote different bytes"
    yield {"run": "checked", "rows": args.rows, "kills": args.kills, "shards": args.shards, "score_sum": str(total),
           "labels": dict(labels), "sha256": sha256(whole), "precision": args.precision}  # fmt: skip


def print_table(lines: Lines) -> None:
    """One row a run."""
    print("| run | rows | seconds | rows/s | resident memory, MiB: first tenth | last tenth | peak |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for run in dict.fromkeys(line["run"] for line in lines if "rss_mib" in line):
        some = [line for line in lines if line["run"] == run and "rss_mib" in line]
        rows, seconds = (max(line[name] for line in lines if line["run"] == run) for name in ("rows", "seconds"))
        tenth = max(1, len(some) // 10)
        first, end = (max(line["rss_mib"] for line in part) for part in (some[:tenth], some[-tenth:]))
        peak = max(line["rss_mib"] for line in some)
        print(
            f"| {run} | {rows:,} | {seconds:,.0f} | {rows / seconds:,.0f} | {first:,.0f} | {end:,.0f} | {peak:,.0f} |"
        )


def plot(lines: Lines, to: Path) -> None:
    """Speed above memory, over time; a panel of each, a line a run, and the kills."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "berthead"  # equal figures are equal files
    figure, panels = pyplot.subplots(2, 1, figsize=(8.0, 5.2), sharex=True)
    runs = list(dict.fromkeys(line["run"] for line in lines if "rss_mib" in line))
    for panel, name, title in zip(panels, ("rate", "rss_mib"), ("rows/s", "resident memory, MiB"), strict=True):
        for run in runs:
            some = [line for line in lines if line["run"] == run and name in line]
            panel.plot([line["seconds"] / 60 for line in some], [line[name] for line in some], label=run, linewidth=1.2)
        for line in lines:
            if line.get("event") == "killed":
                panel.axvline(line["seconds"] / 60, color="#8aa0b4", linestyle=":", linewidth=1.0)
        panel.set_title(title, fontsize=10)
        panel.set_ylim(bottom=0)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].set_xlabel("minutes (dotted: killed and resumed)", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(to, metadata={"Date": None})


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--model", type=Path, help="a model folder that reads single texts")
    run.add_argument("--rows", type=int, default=1_000_000)
    run.add_argument("--part-rows", type=int, default=16_384)
    run.add_argument("--precision", default="fp32")
    run.add_argument("--kills", type=int, default=2)
    run.add_argument("--shards", type=int, default=2)
    run.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    run.add_argument("--work", type=Path, default=Path("long_job"), help="keeps the model, the rows and the answers")
    run.add_argument("--out", type=Path, default=Path("long_job.jsonl"))
    for name in ("table", "plot"):
        shown = verbs.add_parser(name)
        shown.add_argument("files", nargs="+", type=Path)
        if name == "plot":
            shown.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    if args.verb == "run":
        lines = []
        for line in measured(args):
            keep(line, args.out)
            lines.append(line)
        print_table(lines)
        return
    lines = [json.loads(line) for path in args.files for line in path.read_text().splitlines()]
    if args.verb == "table":
        print_table(lines)
    else:
        plot(lines, args.to)


if __name__ == "__main__":
    main()
