"""Fitted: one class for every fitted function, whatever computes it; and load(), for every kind of folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, cast, overload

from berthead.errors import DataError, UsageError
from berthead.function.protocol import AnyFunction, Function, one_function, with_parameters
from berthead.function.scored import scored_on
from berthead.options import JOB_OPTIONS, LOAD_OPTIONS, ROW_OPTIONS, PredictOptions
from berthead.options.keywords import JobKeywords, LoadKeywords, RowKeywords
from berthead.options.python_words import notes_in_python
from berthead.options.signatures import takes_options
from berthead.predict.answers import probabilities_of
from berthead.predict.engines import Engine
from berthead.predict.inputs import Text, examples_of, is_one, refuse_path
from berthead.predict.loading import read_function
from berthead.predict.predictor import Applier
from berthead.predict.rows import labelled_rows
from berthead.records import FloatArray, Label, Prediction

# torch is imported where a function needs it: an ONNX function is loaded and applied without.
if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeVar as TypeVarWithDefault

    from berthead.function.artifact import Artifact
    from berthead.function.joined import JoinedFunctions
    from berthead.function.parameters import Parameters
    from berthead.jobs.counts import Summary
    from berthead.predict.joined import JoinedPredictor
    from berthead.predict.precision import PrecisionChoice

    Answers = TypeVarWithDefault("Answers", default=Prediction)
else:
    Answers = TypeVar("Answers")


class Fitted(Generic[Answers]):
    """A fitted function Predict(BERT(x)), ready to use; safe to call from many threads.

    Joined functions are one Fitted, too: it answers with a dict of predictions by name, iterates over the names, and
    returns a function by its name, as `both["topic"]`. An unsupported operation is a `UsageError` that says why.

    Args:
        function: an `Artifact` with its parameters, a `GraphFunction` of an ONNX folder, or
            `JoinedFunctions`.
        engine: what computes it; None: torch or our own kernels, in float32 on CPUs.

    Attributes:
        warnings: notes about the fit and its data.

    Example:
        >>> model = load("tickets-model")  # doctest: +SKIP
        >>> model.predict("My parcel never came").answer  # doctest: +SKIP
        'delivery'
    """

    def __init__(self, function: AnyFunction, engine: Engine | None = None) -> None:
        self.function, self.engine = function, engine or _by_torch(function)
        self.warnings: list[str] = []

    def __repr__(self) -> str:
        """The formula, what it answers, and how well."""
        joined = self._joined
        if joined is not None:
            return f"Fitted(joined: {', '.join(joined.functions)})"
        function, score = cast("Function", self.function), ""
        texts = " + ".join(str(function.columns[role]) for role in ("text", "pair") if function.columns[role])
        if metrics := self.metrics:
            name = next(name for name in function.task.metrics if name in metrics)
            score = f", {name} {metrics[name]:.4f} on {scored_on(self._run)}"
        formula = f"y = Predict(BERT({texts}))"
        return f"Fitted({formula}, {function.task.name}: {function.task.answers_in_words()}{score})"

    @property
    def metrics(self) -> dict[str, float]:
        """The scores of the held-out rows of the fit, or of its rows out of fold; empty without both.

        Raises:
            UsageError: there are several functions.
        """
        self._one("metrics")
        return {name: value for name, value in self._run.get("metrics", {}).items() if isinstance(value, float)}

    @property
    def _run(self) -> dict[str, Any]:
        """How the fit went, without hashing the parameters as `info` does."""
        own = getattr(self.function, "run", None)
        run: dict[str, Any] = self.function.describe()["run"] if own is None else own
        return run

    @property
    def kind(self) -> str:
        """The kind of its folder: `model`, `adapter`, `onnx` or `joined`."""
        return self.function.kind

    @property
    def options(self) -> PredictOptions:
        """How it is computed."""
        return self.engine.options

    @property
    def choice(self) -> PrecisionChoice | None:
        """The precision that `auto` chose, and why; None: the options name one, or there is no choice."""
        return self.engine.choice

    @property
    def predictor(self) -> Applier | JoinedPredictor:
        """The function with its engine, prepared at first use."""
        return self.engine.predictor

    @property
    def applier(self) -> Applier:
        """The `predictor` of one function, which also gives logits and scores of examples.

        Raises:
            UsageError: there are several functions.
        """
        self._one("applier")
        return cast("Applier", self.predictor)

    # Answers

    @overload
    def predict(self, inputs: Text) -> Answers: ...
    @overload
    def predict(self, inputs: Any) -> list[Answers]: ...

    def predict(self, inputs: Any) -> Any:
        """Answers for one input or for many.

        Args:
            inputs: an input, an iterable of them, or a table with the columns that the function was fitted on: a data
                frame of pandas or polars, an Arrow table, or a dict of columns. An input is a text; for pairs a tuple
                of two texts; for span (question, context); for choose (question, [choice, ...]); for tag and joint a
                text, or {"tokens": [...]}. Each may also be a dict with the columns that the function was fitted on,
                or with `text`, `pair` and `choices`.

        Returns:
            One prediction for one input, a list in the same order for many; of joined functions each is a dict of
            predictions by name. An input without an answer gets a prediction with `error` set.

        Raises:
            DataError: another type of input, or a missing column.
            UsageError: a text that is the name of a file or folder; in a list it is a text like others.

        Example:
            >>> model.predict(["My parcel never came", "I want my money back"])  # doctest: +SKIP
            >>> model.predict(pandas.read_csv("tickets.csv"))  # doctest: +SKIP
        """
        refuse_path(inputs)
        one, predictor = is_one(inputs, self.reader), self.predictor
        examples = examples_of([inputs] if one else inputs, self.reader)
        read: Any = list(examples) if one else examples
        found = list(predictor.predict(read) if isinstance(predictor, Applier) else predictor.answers(read))
        return found[0] if one else found

    def predict_proba(self, inputs: Any) -> FloatArray:
        """Probabilities, float32 [rows, labels].

        Args:
            inputs: many, as for `predict`.

        Returns:
            One row an input, columns in the order of `labels`.

        Raises:
            DataError: an input without an answer.
            UsageError: the function answers with numbers, or there are several.
        """
        function = self._one("predict_proba")
        if not function.task.has_probabilities:
            saw = f"--task {function.task.name} has no probabilities of labels a row"
            raise UsageError("predict_proba", saw, "", "Use predict.")
        if is_one(inputs, function):
            raise DataError("predict_proba", "got one input", "a list of inputs", "Pass [input].")
        return probabilities_of(self.predict(inputs), len(self.labels))

    @takes_options(PredictOptions, JOB_OPTIONS)
    def predict_file(
        self,
        source: str | Path | Sequence[str | Path],
        out: str | Path,
        *,
        quiet: bool = False,
        again: str = "the same call with resume=True.",
        **options: Unpack[JobKeywords],
    ) -> Summary:
        """Predict every row of a file, or of several files as one table, into a file, like `berthead predict`.

        Args:
            source: csv, tsv, jsonl (each also .gz or .zst), parquet, conll or json; a pattern such as `texts/*.csv`,
                or several files of one format and with the same columns; or `-` for stdin.
            out: csv, tsv, jsonl (each also .gz or .zst) or parquet, or `-` for stdout; a file is whole or absent.
            quiet: show no progress.
            again: how to resume, for the message of an interruption.
            {options}

        Returns:
            A summary: `rows`, `failed` and more. Rows without an answer are not in the file but in
            `<out>.errors.jsonl`.

        Raises:
            UsageError: an unknown option, or one that does not fit this input or output.
            DataError: the input cannot be read.
            OutputError: the output cannot be written; parts that are whole are kept in `<out>.parts`.
            Interrupted: Ctrl-C; whole parts are kept, and `resume=True` continues.

        Example:
            >>> model.predict_file("tickets.csv", "answers.csv", probabilities=True).rows  # doctest: +SKIP
            5000
        """
        # A first answer does not wait for the imports of a job.
        from berthead.jobs.files import predict_file

        chosen = self.options.for_job(options)
        pool = None
        if chosen.ray:
            from berthead.jobs.ray import RayPool

            pool = RayPool(chosen, quiet)
        summary = predict_file(self.predictor, source, str(out), chosen, quiet, again, pool)
        summary.notes = notes_in_python(summary.notes)
        return summary

    @takes_options(PredictOptions, ROW_OPTIONS)
    def evaluate(self, data: Any, **options: Unpack[RowKeywords]) -> dict[str, Any]:
        """Metrics on labelled data.

        Args:
            data: a file, a data frame, an Arrow table, a dict of columns, or a list of dicts.
            {options}

        Returns:
            The task's metrics, `rows`, and `warnings`; `skipped` counts the rows left out.

        Raises:
            DataError: rows that cannot be used, or labels that the function does not know.
            UsageError: there are several functions.
        """
        read = labelled_rows(data, [self._one("evaluate")], **options)
        # Rows without finite logits are bad rows too.
        scores = self.applier.evaluate(read.examples, read.bad if read.skips_bad else None)
        notes = read.notes + scores["warnings"] + read.left_out
        return scores | {"skipped": len(read.bad), "warnings": notes_in_python(notes)}

    @property
    def labels(self) -> list[Label]:
        """The labels it can answer, in the order of `predict_proba`; none for regress, span and choose."""
        return list(self._one("labels").task.answer_labels)

    # What it is

    def info(self) -> dict[str, Any]:
        """The formula as fitted: task, encoder, head, hashes of theta and omega, labels, metrics, versions.

        For joined functions: `functions` with this for each, `pretrained`, and the number of `shared_layers`.
        """
        return self.function.describe()

    @overload
    def verify(self: Fitted[Prediction]) -> float: ...
    @overload
    def verify(self: Fitted[dict[str, Prediction]]) -> dict[str, float]: ...

    def verify(self) -> float | dict[str, float]:
        """Replay the golden examples, in float32 unless another precision was given.

        Returns:
            The largest relative difference of a logit; for joined functions one for each name.

        Raises:
            GateError: the answers are not the ones that were saved.
        """
        return self.engine.verify()

    @property
    def functions(self) -> dict[str, Fitted]:
        """The joined functions by name, each in float32 on CPUs; for one function itself, without a name."""
        return self._members or {"": cast("Fitted", self)}

    @cached_property
    def _members(self) -> dict[str, Fitted]:
        joined = self._joined
        return {} if joined is None else {name: Fitted(one) for name, one in joined.functions.items()}

    def __getitem__(self, name: str) -> Fitted:
        return self.functions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.functions)

    def __len__(self) -> int:
        return len(self.functions)

    @property
    def reader(self) -> Function:
        """The function that defines how inputs are read; for joined ones the one that reads most of an input."""
        return cast("Function", self.function) if self._joined is None else self._joined.reader

    @property
    def shared_layers(self) -> int:
        """Number of layers that joined functions share, from the bottom up; 0: only the embeddings.

        Raises:
            UsageError: there is one function.
        """
        if self._joined is None:
            raise UsageError("shared_layers", "the model is one function", "joined functions", "Use berthead.join.")
        return self._joined.shared_layers

    # Parameters and folders

    @property
    def artifact(self) -> Artifact:
        """The function with its parameters.

        Raises:
            UsageError: it has no parameters in torch, or there are several functions.
        """
        return self._artifact("parameters")

    @property
    def theta(self) -> Parameters:
        """The encoder's parameters, under the names of its checkpoint; UsageError without an `artifact`."""
        from berthead.function.parameters import Parameters

        return Parameters(self._artifact("theta").theta())

    @property
    def omega(self) -> Parameters:
        """The head's parameters, under the names of model.safetensors; UsageError without an `artifact`."""
        from berthead.function.parameters import Parameters

        return Parameters(self._artifact("omega").omega())

    def with_parameters(
        self, theta: Mapping[str, Tensor] | None = None, omega: Mapping[str, Tensor] | None = None
    ) -> Fitted:
        """A new function: the same architecture with other parameters.

        Temperature, thresholds and the range of numbers stay as fitted, even though the parameters change. Golden
        examples and hashes are made again; the old function's scores are left out of its record.

        Args:
            theta: parameters of the encoder, such as another function's `theta`; None: unchanged.
            omega: parameters of the head; None: unchanged.

        Returns:
            The new function; this one is unchanged.

        Raises:
            ModelError: a tensor is missing, left over, misshapen or not finite.
            UsageError: it has no parameters in torch, or there are several functions.

        Example:
            >>> mean = Parameters.mean([model.theta, other.theta])  # doctest: +SKIP
            >>> model.with_parameters(theta=mean).save("between")  # doctest: +SKIP
        """
        from berthead.function import artifact as artifacts
        from berthead.function.parameters import Parameters

        given = [None if one is None else one if isinstance(one, Parameters) else Parameters(one)
                 for one in (theta, omega)]  # fmt: skip
        changed = artifacts.with_parameters(self._artifact("with_parameters"), *given)
        return Fitted(changed, _by_torch(changed, self.options))

    def merged(self) -> Fitted:
        """The same function without an adapter: the LoRA update is merged into the encoder.

        Returns:
            The function; `save` writes a complete model folder.

        Raises:
            UsageError: it has no adapter, or no parameters in torch.
        """
        whole = self._artifact("merge").merged()
        return Fitted(whole, _by_torch(whole, self.options))

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the folder, which `load` reads; it is never half written.

        Args:
            folder: the target folder; each joined function has its own folder in it, which can be loaded by itself.
            overwrite: replace a folder that berthead wrote.

        Raises:
            OutputError: it cannot be written.
            ModelError: the pre-trained encoder of joined functions is missing.
            UsageError: the function is an ONNX graph.
        """
        if self._joined is not None:
            from berthead.function import joined_folder

            joined_folder.save(self._joined, Path(folder), overwrite)
        else:
            from berthead.function import folder as folders

            folders.save(self._artifact("save"), Path(folder), overwrite)

    def export_onnx(self, folder: str | Path, overwrite: bool = False) -> float:
        """Write the function as an ONNX graph with all that its answers need; `load` reads it, also without torch.

        Args:
            folder: the target folder; it is never half written.
            overwrite: replace a folder that exists.

        Returns:
            The largest relative difference of a golden example's logit in ONNX Runtime.

        Raises:
            ModelError: the head is of another package.
            UsageError: `onnx` or `onnxruntime` is not installed, or the function has no parameters in torch.
            OutputError: the folder cannot be written.
            GateError: the graph gives other answers.
        """
        artifact = self._artifact("export")
        from berthead.export.onnx_folder import write_onnx

        return write_onnx(artifact, Path(folder), overwrite)

    def export_hf(self, folder: str | Path, overwrite: bool = False) -> list[str]:
        """Write the function as a plain folder of transformers, without berthead.json and the golden examples.

        Args:
            folder: the target folder; it is never half written.
            overwrite: replace a model folder that exists.

        Returns:
            Notes, as lines: the class that loads it, and what berthead does beyond that class.

        Raises:
            OutputError: the folder cannot be written.
            UsageError: the function has no parameters in torch, or there are several.
        """
        artifact = self._artifact("export")
        from berthead.export.hf_folder import write_hf

        return write_hf(artifact, Path(folder), overwrite)

    # Which function it is

    @property
    def _joined(self) -> JoinedFunctions | None:
        return cast("JoinedFunctions", self.function) if self.kind == "joined" else None

    def _one(self, verb: str) -> Function:
        return one_function(self.function, verb)

    def _artifact(self, verb: str) -> Artifact:
        return cast("Artifact", with_parameters(self.function, verb))


@takes_options(PredictOptions, LOAD_OPTIONS)
def load(folder: str | Path, **options: Unpack[LoadKeywords]) -> Fitted[Any]:
    """Load a fitted function from its folder; also joined and exported ones.

    Args:
        folder: the model folder, or one that `join` or `export` wrote.
        {options}

    Returns:
        The function; all functions of a joined folder as one.

    Raises:
        ModelError: the folder is missing, broken or not to be trusted, or it needs torch, which is not installed.
        UsageError: an option that this folder does not support, or a device that torch does not find.

    Example:
        >>> model = load("tickets-model")  # doctest: +SKIP
    """
    return Fitted(*read_function(Path(folder), PredictOptions.from_sources(options, only=LOAD_OPTIONS)))


def _by_torch(function: Any, options: PredictOptions | None = None) -> Engine:
    """torch, or our own kernels."""
    from berthead.predict.torch_engine import TorchEngine

    return TorchEngine(function, options)
