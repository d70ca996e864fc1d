"""YAML files of a user, and a configuration: options in such a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from berthead.errors import UsageError, did_you_mean, listed

_LARGEST_CONFIG = 100_000  # characters; a file with all options has a few thousand


def load_yaml(path: Path, what: str, example: str, *, as_texts: bool = False) -> dict[Any, Any]:
    """A mapping in a YAML file.

    Args:
        path: the file.
        what: what it maps, in words, for errors.
        example: a line of such a file, for errors.
        as_texts: whether all values and keys are read as the texts that they are: `yes` as "yes".

    Returns:
        The mapping, unchecked.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    import yaml

    base: Any = yaml.BaseLoader if as_texts else yaml.SafeLoader

    class Loader(base):  # type: ignore[misc]
        """No aliases, of which a few make a value that no memory can hold; no key twice, of which one would be lost."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                line = self.peek_event().start_mark.line + 1
                raise yaml.YAMLError(f"line {line} refers to another value by *")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            known = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in known:
                    raise yaml.YAMLError(f'line {key.start_mark.line + 1} holds "{key.value}", which is there twice')
                known.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_CONFIG + 1)
        if len(text) > _LARGEST_CONFIG:
            raise UsageError(str(path), f"is longer than {_LARGEST_CONFIG:,} characters", f"lines such as `{example}`")
        loaded = yaml.load(text, Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, UsageError):
            raise
        reason = " ".join(str(error).split())
        raise UsageError(str(path), f"cannot be read as YAML ({reason})", f"a mapping of {what}") from error
    if not isinstance(loaded, dict):
        raise UsageError(str(path), "does not hold a mapping", f"lines such as `{example}`")
    return loaded


def read_config(path: Path, names: list[str]) -> dict[str, Any]:
    """The options in a file.

    Args:
        path: the file.
        names: the keys it may have, with `_` for `-`.

    Returns:
        Key to value, unchecked.

    Raises:
        UsageError: it cannot be read, or has another key.
    """
    loaded = load_yaml(path, "options to values", "epochs: 3")
    values = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    for key in values:
        if key not in names:
            known = f"one of {listed(names, 50)}"
            raise UsageError(f"{path}: {key}", "is not an option", known, did_you_mean(key, names))
    return values
