"""--help of a command: its flags in sections, and examples; and of all commands, in sections too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer.core

_SETTINGS = {"help_option_names": ["-h", "--help"]}
# The flags of all commands by what they are about; a flag has one section, whatever the command.
SECTIONS = {
    "Rows": "text pair label labels choices intent separator tag_unit tag_names valid skip_bad_rows",
    "Output": "out onnx hf shared name probabilities as_json quiet overwrite resume shard",
    "Task and model": "task encoder revision adapt head pooling windows max_tokens on_long stride base soup uniform",
    "Training": "epochs batch lr head_lr layer_decay unfreeze weight_decay warmup clip class_weight metric seed",
    "Speed and memory": "engine precision device threads workers token_budget part_rows ray cache checkpoint_minutes",
    "Settings": "config print_config help",
}
COMMANDS = {
    "Fit and apply": "fit eval predict gather",
    "Compare": "compare bench",
    "Model folders": "info verify join merge export",
    "Encoders": "pull",
}
EXAMPLES = {
    "fit": (
        "berthead fit tickets.csv --label queue --out tickets-model",
        "berthead fit tickets.csv --label queue --adapt frozen --out tickets-model",
        "berthead fit train.conll --task tag --valid dev.conll --out tags-model",
    ),
    "eval": ("berthead eval tickets-model test.csv", "berthead eval tickets-model test.csv --json"),
    "predict": (
        "berthead predict tickets-model new.csv --out answers.csv",
        'berthead predict tickets-model "where is my parcel"',
        "cat new.csv | berthead predict tickets-model - > answers.csv",
    ),
    "gather": ("berthead gather answers.csv",),
    "compare": ("berthead compare tickets-model other-model test.csv",),
    "bench": ("berthead bench tickets-model test.csv",),
    "join": ("berthead join queue=queue-model mood=mood-model --out both",),
    "info": ("berthead info tickets-model", "berthead info tickets-model --json"),
    "verify": ("berthead verify tickets-model",),
    "merge": ("berthead merge lora-model --out whole-model",),
    "export": (
        "berthead export tickets-model --onnx tickets-onnx",
        "berthead export tickets-model --hf tickets-hf",
    ),
    "pull": ("berthead pull bert-base-uncased",),
}


def _sectioned(named: Iterable[tuple[str, Any]], sections: dict[str, str], other: str) -> list[tuple[str, list[Any]]]:
    """Things by section, in the order of the sections; those of none come last."""
    of = {name: section for section, names in sections.items() for name in names.split()}
    found: dict[str, list[Any]] = {section: [] for section in (*sections, other)}
    for name, thing in named:
        found[of.get(name, other)].append(thing)
    return [(section, things) for section, things in found.items() if things]


class Command(typer.core.TyperCommand):
    """A command whose help has sections and examples."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        more["context_settings"] = _SETTINGS | (more.get("context_settings") or {})
        super().__init__(*arguments, **more)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each section of flags."""
        arguments = [one.get_help_record(ctx) for one in self.get_params(ctx) if one.param_type_name == "argument"]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([one for one in arguments if one])
        flags = [
            (str(one.name), record)
            for one in self.get_params(ctx)
            if one.param_type_name == "option" and (record := one.get_help_record(ctx))
        ]
        for section, records in _sectioned(flags, SECTIONS, "Options"):
            with formatter.section(section):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, a line each."""
        if self.name in EXAMPLES:
            with formatter.section("Examples"):
                for line in EXAMPLES[self.name]:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Group(typer.core.TyperGroup):
    """All commands, whose help has sections."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        more["context_settings"] = _SETTINGS | (more.get("context_settings") or {})
        super().__init__(*arguments, **more)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each section of commands."""
        # Whole sentences: a line that is cut says less than two lines.
        commands = [(name, (name, one.get_short_help_str(limit=1000))) for name, one in self.commands.items()]
        for section, rows in _sectioned(commands, COMMANDS, "Commands"):
            with formatter.section(section):
                formatter.write_dl(rows)
