"""All file formats, and finding the format of a file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from berthead.errors import UsageError, did_you_mean, listed
from berthead.formats.conll import CONLL
from berthead.formats.csv import CSV, TSV
from berthead.formats.format import Format
from berthead.formats.json import JSON_LINES, document_formats
from berthead.formats.label_studio import LABEL_STUDIO
from berthead.formats.parquet import PARQUET
from berthead.formats.spacy import SPACY
from berthead.formats.squad import SQUAD
from berthead.formats.xlsx import XLSX
from berthead.storage.compression import CODECS, split_codec

# The first line of a stream is shown to the last one first: what is more particular stands behind.
FORMATS = (CSV, TSV, JSON_LINES, PARQUET, XLSX, CONLL, *document_formats(SQUAD, LABEL_STUDIO, SPACY))
PLAIN = JSON_LINES
"""What holds any row: bad rows, parts of what has to be known whole, and what stdout is given."""

# Files of other programs that hold rows: their names are no texts either, and are refused with what can be read.
_OTHERS = (".xls", ".xlsm", ".xlsb", ".ods", ".feather", ".arrow", ".orc", ".avro", ".pkl", ".pickle", ".zip")

_BY_NAME = {one.name: one for one in FORMATS}


def find_format(name: str) -> Format:
    """A format by its name.

    Raises:
        UsageError: there is no such format.

    Example:
        >>> find_format("tsv").extensions
        ('.tsv',)
    """
    if name not in _BY_NAME:
        raise UsageError("format", f'is "{name}"', f"one of {listed(_BY_NAME)}", did_you_mean(name, _BY_NAME))
    return _BY_NAME[name]


def format_of(path: str, reading: bool = False) -> tuple[str, str]:
    """The format and the compression, from a path's extension.

    Args:
        path: a file name or path.
        reading: include formats that are read and never written.

    Returns:
        The name of the format; and "gzip" or "zstd" for a further `.gz` or `.zst`, else "".

    Raises:
        UsageError: another extension.

    Example:
        >>> format_of("reviews.csv.gz")
        ('csv', 'gzip')
    """
    known = {extension: one for one in FORMATS if reading or one.writing for extension in one.extensions}
    path = split_sheet(path)[0] if reading else path
    name, codec = split_codec(path.lower())
    extension = Path(name).suffix
    if extension not in known or (codec and not known[extension].text):
        shown = extension + path.lower().removeprefix(name)
        saw = f'has the extension "{shown}"' if shown else "has no extension"
        texts = listed((one for one in known if known[one].text), len(known))
        others = listed((one for one in known if not known[one].text), len(known))
        allowed = f"{texts} (each also with {' or '.join(CODECS)}) and {others}"
        raise UsageError(path, saw, f"one of {allowed}", "Convert or rename the file, or use `-`.")
    return known[extension].name, codec


def split_sheet(path: str) -> tuple[str, str]:
    """The file and the sheet in a path.

    Args:
        path: a file, or `FILE#SHEET` if the file's format has sheets.

    Returns:
        The file's path, and "#" with the name of the sheet; "" if none is named.

    Example:
        >>> split_sheet("issue#7.csv")
        ('issue#7.csv', '')
    """
    extensions = "|".join(re.escape(extension) for one in FORMATS if one.sheets for extension in one.extensions)
    found = re.match(f"(.*?({extensions}))#", path, re.IGNORECASE | re.DOTALL) if extensions else None
    if found is None or os.path.isfile(path):  # noqa: PTH113 - any text may be asked about, which pathlib does not take
        return path, ""
    return found[1], path[found.end(1) :]


def looks_like_a_file(name: str) -> bool:
    """Whether a text may be the name of a file of rows.

    Example:
        >>> looks_like_a_file("reviews.csv"), looks_like_a_file("Where is my card?")
        (True, False)
    """
    extensions = (extension for one in FORMATS for extension in one.extensions)
    name, _ = split_sheet(name)
    return " " not in name and name.lower().endswith((*extensions, *CODECS, *_OTHERS))


def path_in(text: str) -> str:
    """What a text is, if it is the path of a file or folder and no text to answer.

    Args:
        text: what was given as a text.

    Returns:
        `is a file`, `is a folder`, or `looks like a file name` (of a known format, without blanks); "" for a text. A
        single word is a text, whatever the working folder holds.

    Example:
        >>> path_in("reviews.csv"), path_in("Where is my card?")
        ('looks like a file name', '')
    """
    if os.sep in text or "." in text:
        for kind, is_kind in (("file", os.path.isfile), ("folder", os.path.isdir)):
            if is_kind(text):
                return f"is a {kind}"
    return "looks like a file name" if looks_like_a_file(text) else ""


def sniff(head: str) -> Format:
    """The format of a stream.

    Args:
        head: its first line that is not blank.

    Example:
        >>> sniff('{"text": "fine"}').name, sniff("text,label").name
        ('jsonl', 'csv')
    """
    return next(one for one in reversed(FORMATS) if one.sniffed and one.sniffed(head))
