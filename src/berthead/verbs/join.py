"""Several fitted functions on one encoder, as one folder: shared layers are computed once a text, and all answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from berthead.answering import Text
from berthead.data.examples import FORMS
from berthead.engine.cpu import find_device, use_threads
from berthead.errors import BertheadError, ModelError, UsageError, listed
from berthead.fitted import Fitted
from berthead.function import folder as folders
from berthead.function.adapter import THETA
from berthead.function.artifact import Artifact
from berthead.function.checks import refuse_strange_files
from berthead.function.joined_folder import (
    find_theta_hat,
    is_joined,
    is_name,
    read_record,
    write_function,
    write_record,
)
from berthead.model import families
from berthead.model.checkpoint import read_checkpoint
from berthead.options import FitOptions, PredictOptions
from berthead.predict.columns import widest
from berthead.predict.joined import JoinedPredictor, shared_layers
from berthead.predict.precision import choose
from berthead.records import Prediction
from berthead.storage.folders import check_out, made_whole
from berthead.tasks import find_task
from berthead.verbs.fit import load as load_one


class Joined:
    """Several fitted functions on one encoder, by name; safe to call from many threads.

    Args:
        functions: by name, of one encoder and one form of input.
        options: precision, device (of several GPUs the first computes) and token budget.

    Attributes:
        choice: the precision that `auto` took, and why; None: the options name one.

    Raises:
        ModelError: two of them do not go together.
        UsageError: there is none, or a name that is no name; or torch sees no such device.

    Example:
        >>> both = Joined({"topic": load("topic-model"), "mood": load("mood-model")})  # doctest: +SKIP
        >>> both.predict("My parcel never came")["topic"].answer  # doctest: +SKIP
        'delivery'
    """

    def __init__(self, functions: Mapping[str, Fitted], options: PredictOptions | None = None) -> None:
        options = options or PredictOptions()
        self.functions = dict(functions)
        _check(self.functions)
        artifacts = {name: one.artifact for name, one in self.functions.items()}
        device = find_device(options.device, options.precision)
        self.choice = choose(artifacts, device) if options.precision == "auto" else None
        precision = self.choice.precision if self.choice else options.precision
        self.predictor = JoinedPredictor(artifacts, precision, options.token_budget, device)

    def __getitem__(self, name: str) -> Fitted:
        return self.functions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.functions)

    def __len__(self) -> int:
        return len(self.functions)

    @property
    def shared_layers(self) -> int:
        """Layers that all functions have in common, from the bottom up; 0: the embeddings alone."""
        return shared_layers([one.artifact.model for one in self.functions.values()])

    @overload
    def predict(self, texts: Text) -> dict[str, Prediction]: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[Text]) -> list[dict[str, Prediction]]: ...

    def predict(self, texts: Text | Iterable[Text]) -> dict[str, Prediction] | list[dict[str, Prediction]]:
        """Answers of all functions for one text or for many.

        Args:
            texts: as for `Fitted.predict`.

        Returns:
            A prediction by each function's name, for one text; a list of such in the same order, for many.

        Raises:
            DataError: something that is neither a text nor a pair.
        """
        reader = self.reader
        one = reader._is_one(texts)
        inputs: Iterable[Any] = [texts] if one else texts
        predictions = list(self.predictor.answers(reader._examples(inputs)))
        return predictions[0] if one else predictions

    @property
    def reader(self) -> Fitted:
        """The function that reads most of an input: tokens too, where one of them does."""
        artifact = widest(self.predictor.functions)
        return next(one for one in self.functions.values() if one.artifact is artifact)

    def verify(self) -> dict[str, float]:
        """Replay each function's golden examples: the largest relative difference by name.

        Raises:
            GateError: a difference is above the tolerance.
        """
        return {name: one.verify() for name, one in self.functions.items()}

    def info(self) -> dict[str, Any]:
        """What each function is, and how many layers all of them share."""
        functions = {name: one.info() for name, one in self.functions.items()}
        pretrained = self.reader.artifact.pretrained
        return {"functions": functions, "pretrained": pretrained, "shared_layers": self.shared_layers}

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the joined folder: the encoder once, and of each function what differs from it.

        Args:
            folder: where to; each function has a folder of its own in it, which loads by itself too.
            overwrite: replace a folder that exists.

        Raises:
            OutputError: it cannot be written.
            ModelError: the pre-trained encoder is not at hand.
        """
        theta_hat = find_theta_hat([one.artifact for one in self.functions.values()])
        with made_whole(Path(folder), overwrite) as aside:
            theta_hat.write(aside / THETA)
            for name, one in self.functions.items():
                write_function(one.artifact, aside / name, theta_hat.tensors)
            write_record(aside, list(self.functions), self.reader.artifact.pretrained)


def join(
    members: Sequence[Fitted | str | Path] | Mapping[str, Fitted | str | Path],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> Joined:
    """Make one of several fitted functions that share an encoder.

    Args:
        members: functions or their folders, by name; of a sequence the folders' own names are taken.
        out: the folder to write; None: none is written.
        overwrite: replace a folder that exists.

    Returns:
        The functions, which share what is equal in them.

    Raises:
        UsageError: too few, or two of one name.
        ModelError: they do not go together.
        OutputError: the folder cannot be written.

    Example:
        >>> both = join(["topic-model", "mood-model"], "both")  # doctest: +SKIP
    """
    if out is not None:
        check_out(Path(out), overwrite)
    named = dict(members) if isinstance(members, Mapping) else _named(members)
    joined = Joined({name: one if isinstance(one, Fitted) else load_one(one) for name, one in named.items()})
    if out is not None:
        joined.save(out, overwrite)
    return joined


def add(folder: str | Path, name: str, fitted: Fitted) -> None:
    """Add a function to a joined folder; the files of the others are not touched.

    Args:
        folder: the joined folder.
        name: of the function.
        fitted: on the folder's own encoder, `folder/theta`.

    Raises:
        UsageError: the name is taken, or no name.
        ModelError: the folder holds no joined functions, or they do not go together.
        OutputError: it cannot be written.
    """
    place = Path(folder)
    record = check_name(place, name)
    others = {one: load_one(place / one) for one in record["functions"]}
    _check({**others, name: fitted})
    theta_hat = families.to_checkpoint((base := read_checkpoint(str(place / THETA))).weights, base.config)
    with made_whole(place / name) as aside:
        folders.write(fitted.artifact, aside, THETA, theta_hat)
        folders.check_written(aside)
    # Another process may have added one meanwhile.
    write_record(place, [*read_record(place)["functions"], name], record["pretrained"])


def move(own: Path, folder: Path, name: str, fitted: Fitted) -> None:
    """Add a function that lies in a folder of its own, which is gone when all went well.

    Args:
        own: its folder.
        folder: the joined folder.
        name: of the function.
        fitted: the function.

    Raises:
        BertheadError: it cannot be added; it stays in its own folder.
    """
    try:
        add(folder, name, fitted)
    except BertheadError as error:
        fix = f"{error.fix} The function is kept in {own}.".strip()
        raise type(error)(error.where, error.saw, error.expected, fix) from error
    shutil.rmtree(own)


def check_name(folder: Path, name: str) -> dict[str, Any]:
    """Whether a function of this name can be added to a joined folder, before any work is done.

    Args:
        folder: the joined folder.
        name: of the function.

    Returns:
        The folder's record.

    Raises:
        UsageError: the name is taken, or no name.
        ModelError: the folder holds no joined functions.
    """
    record = read_record(folder)
    allowed = "another name, of letters, digits, `_`, `-` and `.`"
    if not is_name(name):
        raise UsageError(f"--name {name[:100]}", "is not a name for a function", allowed)
    if name in record["functions"]:
        raise UsageError(f"--name {name}", f"{folder} has a function of that name", allowed)
    if (folder / name).exists():
        saw = f"{folder} holds a folder of that name, which no function has"
        raise UsageError(f"--name {name}", saw, allowed, f"If a fit was stopped there, remove {folder / name}.")
    check_out(folder / name, overwrite=False)
    return record


def load(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    precision: str | None = None,
    token_budget: int | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Fitted | Joined:
    """A fitted function from its folder, or several from a joined one.

    Args:
        folder: the model folder, or one that `join` wrote.
        base: where the encoder of an adapter folder lies; None: where it was at the fit, or beside the folder.
        precision: `fp32` (exact), `bf16`, `int8`, or `auto`: the fastest that was measured to answer alike.
        token_budget: tokens computed at once; None: what suits the device.
        threads: processor threads; None: what this process may use.
        device: `cpu` (the default), or `cuda`: all NVIDIA GPUs of this machine, for several functions the first.

    Returns:
        The function, or the functions.

    Raises:
        ModelError: the folder is broken, or not to be trusted.
        UsageError: torch sees no such device, or it does not compute in this precision.

    Example:
        >>> model = load("tickets-model")  # doctest: +SKIP
    """
    flags = {"precision": precision, "token_budget": token_budget, "threads": threads, "device": device}
    place = Path(folder)
    if not is_joined(place):
        return load_one(folder, base=base, **flags)  # type: ignore[arg-type]
    if base is not None:
        raise UsageError(f"--base {base}", f"{folder} holds an encoder of its own", "", "Leave it out.")
    refuse_strange_files(place)
    options = PredictOptions.from_sources(flags)
    use_threads(options.threads)
    functions = {name: load_one(place / name) for name in read_record(place)["functions"]}
    return Joined(functions, options)


def _named(members: Sequence[Fitted | str | Path]) -> dict[str, Fitted | str | Path]:
    named: dict[str, Fitted | str | Path] = {}
    for one in members:
        if isinstance(one, Fitted):
            raise UsageError("join", "is given a function without a name", '{"name": function, ...}, or folders')
        words, equals, rest = str(one).partition("=")
        # A folder as it is, where its name has a sign of equality; else NAME=FOLDER.
        is_folder = os.path.exists(one)  # noqa: PTH110 - pathlib raises where a name is too long
        name, place = (words, rest) if equals and not is_folder else (Path(one).resolve().name, str(one))
        if name in named:
            raise UsageError("join", f'has two functions called "{name}"', "NAME=FOLDER gives one another name")
        named[name] = place
    return named


def _check(functions: Mapping[str, Fitted]) -> None:
    """Whether functions can be applied as one."""
    if not functions:
        raise UsageError("join", "is given no function", "at least one")
    for name in functions:
        if not is_name(name):
            raise UsageError("join", f'has a function called "{name}"', "letters, digits, `_`, `-` and `.`")
    (first, one), *others = ((name, fitted.artifact) for name, fitted in functions.items())
    for name, other in others:
        different = [what for what, a, b in _sides(one, other) if a != b]
        if different:
            allowed = "functions that were fitted on one encoder, and read the same form of input"
            raise ModelError(name, f"and {first} differ in {listed(different)}", allowed)


def _sides(one: Artifact, other: Artifact) -> list[tuple[str, Any, Any]]:
    return [
        ("the pre-trained encoder", one.pretrained["theta_sha256"], other.pretrained["theta_sha256"]),
        ("its sizes", one.model.encoder.config, other.model.encoder.config),
        ("the tokenizer", one.tokenizer.sha256, other.tokenizer.sha256),
        ("the form of input", _form(one), _form(other)),
    ]


def _form(artifact: Artifact) -> tuple[str, bool]:
    """Texts and words are one form: who reads words reads texts too."""
    return _read_as(artifact.task.form), bool(artifact.columns["pair"])


def _read_as(form: str) -> str:
    return "text" if FORMS[form].reads_words else form


def fitted_on(folder: str | Path, options: dict[str, Any], config: Path | None = None) -> dict[str, Any]:
    """The options of a fit whose function joins those of a folder.

    Args:
        folder: the joined folder.
        options: what the user wants.
        config: a YAML file with options, or None.

    Returns:
        The same with the folder's encoder, which stays as it is unless the user wants otherwise.

    Raises:
        UsageError: another encoder is asked for, or a form of input that the others do not read.
        ModelError: the folder holds no joined functions, or a broken one.
    """
    place = Path(folder)
    functions = {name: load_one(place / name) for name in read_record(place)["functions"]}
    chosen = FitOptions.from_sources(options, config)
    if chosen.encoder != FitOptions().encoder:
        saw = f"the function joins those of {folder}, on their encoder"
        raise UsageError(f"--encoder {chosen.encoder}", saw, "", "Leave it out.")
    if chosen.overwrite:
        raise UsageError(
            "--overwrite", "functions of a joined folder are added, and none is replaced", "another --name"
        )
    first = next(iter(functions.values())).artifact
    form = find_task(chosen.task).form
    wanted = _read_as(form), bool(chosen.pair) or FORMS[form].needs_pair
    if wanted != _form(first):
        words = "pairs" if _form(first)[1] else "single texts"
        raise UsageError(f"--shared {folder}", f"its functions read {words} of the form {_form(first)[0]}", "the same")
    adapt = chosen.adapt if chosen.adapt != "full" else options.get("adapt") or "frozen"
    return options | {"encoder": str(place / THETA), "adapt": adapt}
