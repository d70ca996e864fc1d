"""A configuration: options in a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from berthead.errors import UsageError, did_you_mean, listed

_LARGEST_CONFIG = 100_000  # characters; a file with all options has a few thousand


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
    import yaml

    class NoAliases(yaml.SafeLoader):
        """A few aliases of aliases make a value that no memory can hold when it is shown."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
                raise yaml.YAMLError(f"line {line} refers to another value by *")
            return super().compose_node(parent, index)

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_CONFIG + 1)
        if len(text) > _LARGEST_CONFIG:
            raise UsageError(str(path), f"is longer than {_LARGEST_CONFIG:,} characters", "lines such as `epochs: 3`")
        loaded = yaml.load(text, NoAliases)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, UsageError):
            raise
        reason = " ".join(str(error).split())
        raise UsageError(str(path), f"cannot be read as YAML ({reason})", "a mapping of options to values") from error
    if not isinstance(loaded, dict):
        raise UsageError(str(path), "does not hold a mapping", "lines such as `epochs: 3`")
    values = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    for key in values:
        if key not in names:
            known = f"one of {listed(names, 50)}"
            raise UsageError(f"{path}: {key}", "is not an option", known, did_you_mean(key, names))
    return values
