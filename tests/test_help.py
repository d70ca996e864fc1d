"""--help in sections with examples that can be run, completion, and the configuration of a fit."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from conftest import shell_env, toy_rows, write_csv

from berthead.cli import _COMMANDS
from berthead.cli.help import COMMANDS, EXAMPLES, SECTIONS

EVERY = list(_COMMANDS)


@pytest.mark.parametrize("command", EVERY)
def test_help_of_a_command_has_sections_and_examples(cli, command):
    ran = cli(command, "--help")
    assert ran.code == 0
    assert cli(command, "-h").out == ran.out
    heads = re.findall(r"^(\S[^:\n]*):$", ran.out, re.MULTILINE)
    assert set(heads) <= {"Arguments", "Examples", *SECTIONS}, "a flag is in no section"
    assert heads[-1] == "Examples"
    assert max(map(len, ran.out.splitlines())) <= 80
    cut = [line for line in ran.out.splitlines() if line.endswith("...") and not line.startswith("Usage")]
    assert [line for line in cut if "json, ..." not in line] == []


def test_help_of_all_shows_each_command_once_and_cuts_no_line(cli):
    ran = cli("-h")
    assert ran.out == cli("--help").out
    for name in EVERY:
        assert len(re.findall(rf"^  {name} ", ran.out, re.MULTILINE)) == 1
    assert re.findall(r"^(\S[^:\n]*):$", ran.out, re.MULTILINE) == ["Options", *COMMANDS]
    assert "..." not in ran.out.split("Options:")[1]


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_understood(cli, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path))
    words = shlex.split(line.split("| ")[-1].split(" > ")[0])
    assert words[0] == "berthead"
    if words[1] == "pull":
        return  # it would use the network
    ran = cli(*words[1:])
    assert ran.code in (2, 3)  # nothing of it is there
    assert "No such option" not in ran.err
    assert "Try:" not in ran.err, "it is no complete command"


def test_every_command_has_examples():
    assert EXAMPLES.keys() == set(EVERY)


@pytest.mark.parametrize(("words", "found"), [("berthead pre", "predict"), ("berthead fit --sep", "--separator")])
def test_a_shell_completes_words(shell, words, found):
    asked = {"_BERTHEAD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    ran = shell(env=shell_env(**asked))
    assert ran.code == 0, ran.err
    assert found in ran.out.split()


# The configuration


def test_a_configuration_names_data_and_output_and_is_printed_as_it_is_read(cli, tiny_bert, tmp_path):
    data = write_csv(tmp_path / "data.csv", toy_rows(1))
    config, model = tmp_path / "fit.yaml", tmp_path / "model"
    config.write_text(
        f"data: {data}\nout: {model}\nencoder: {tiny_bert}\nepochs: 1\nvalid: 0\nthreads: 1\nmax-tokens: 20\n"
    )
    printed = cli("fit", "--config", config, "--print-config", "--seed", 3)
    assert printed.code == 0, printed.err
    assert not model.exists()
    said = yaml.safe_load(printed.out)
    assert (said["data"], said["out"], said["seed"], said["max_tokens"]) == (str(data), str(model), 3, 20)
    (tmp_path / "again.yaml").write_text(printed.out)
    assert cli("fit", "--config", tmp_path / "again.yaml", "--print-config").out == printed.out
    ran = cli("fit", "--config", tmp_path / "again.yaml", "-q")
    assert ran.code == 0, ran.err
    assert (model / "berthead.json").is_file()
    other = cli("fit", "--config", config, "-q", "--out", tmp_path / "other")
    assert other.code == 0, other.err
    assert (tmp_path / "other" / "berthead.json").is_file()


@pytest.mark.parametrize(
    ("text", "saw"), [("data: 3\n", "data: is 3; expected a path"), ("date: x\n", "date: is not an option")]
)
def test_a_configuration_with_a_wrong_place_is_refused(cli, tmp_path, text, saw):
    (tmp_path / "fit.yaml").write_text(text)
    ran = cli("fit", "--config", tmp_path / "fit.yaml")
    assert ran.code == 2
    assert saw in ran.err


def test_a_fit_without_data_says_so(cli, tmp_path):
    ran = cli("fit", "--out", tmp_path / "m")
    assert (ran.code, ran.err.splitlines()[0]) == (
        2,
        "berthead: fit: got no data; expected a file of rows, or --labels FILE. Try: berthead fit --help",
    )
