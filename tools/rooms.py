"""Writes what the docs say of the code's rooms from the code: the picture, the ladder and the list of modules.

python tools/rooms.py           # write them anew
python tools/rooms.py --check   # exit 1 where they are out of date
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "berthead"
PACKAGE = "berthead"


def ladder() -> list[list[str]]:
    """The rungs that import-linter enforces, highest first: names of rooms, without the package's own."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    rungs = [[name.strip().removeprefix(f"{PACKAGE}.") for name in rung.split("|")] for rung in contract["layers"]]
    return [rung for rung in rungs if rung != ["__main__"]]


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(doc.split("\n\n")[0].split())
    return first.replace("|", "\\|")


def holds_code(path: Path) -> bool:
    """Whether a module is more than a docstring."""
    return len(ast.parse(path.read_text(encoding="utf-8")).body) > 1


def room_path(room: str) -> Path:
    """The file that says what a room is."""
    folder = SOURCE / room
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def imports() -> dict[str, set[str]]:
    """The rooms that each room imports, those left out that another of its imports leads to."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True)
    rooms = [room for rung in ladder() for room in rung]
    found = {room: set[str]() for room in rooms}
    for module in graph.modules:
        importer = module.split(".")[1] if "." in module else ""
        for imported in graph.find_modules_directly_imported_by(module) if importer in found else ():
            room = imported.split(".")[1] if "." in imported else ""
            if room in found and room != importer:
                found[importer].add(room)
    below: dict[str, set[str]] = {}
    for room in reversed(rooms):
        below[room] = found[room].union(*(below[other] for other in found[room]))
    return {room: {one for one in found[room] if not any(one in below[other] for other in found[room])}
            for room in rooms}  # fmt: skip


def picture() -> str:
    """The rooms as a mermaid graph; who stands higher imports, and never the other way round."""
    lines = ["```mermaid", "flowchart TD"]
    for number, rung in enumerate(ladder()):
        lines.append(f"  subgraph rung{number}[ ]")
        lines += [f"    {room}[{room if (SOURCE / room).is_dir() else f'{room}.py'}]" for room in rung]
        lines.append("  end")
    for room, others in imports().items():
        lines += [f"  {room} --> {other}" for other in sorted(others)]
    return "\n".join([*lines, "```"])


def table() -> str:
    """One line a room, highest first."""
    lines = ["| room | what it is |", "| --- | --- |"]
    for rung in ladder():
        for room in rung:
            name = f"{room}/" if (SOURCE / room).is_dir() else f"{room}.py"
            lines.append(f"| `{name}` | {sentence(room_path(room))} |")
    return "\n".join(lines)


def modules() -> str:
    """Every module, by room."""
    parts = []
    for rung in ladder():
        for room in rung:
            files = sorted((SOURCE / room).rglob("*.py")) if (SOURCE / room).is_dir() else []
            rows = [f"| `{path.relative_to(SOURCE / room)}` | {sentence(path)} |" for path in files if holds_code(path)]
            name = f"{room}/" if files else f"{room}.py"
            head = [f"## {name}", "", sentence(room_path(room)), ""]
            parts += [*head, *(["| module | |", "| --- | --- |", *rows, ""] if rows else [])]
    return "\n".join(parts).rstrip()


def in_words() -> str:
    """The ladder on one line."""
    return "    " + " → ".join(" | ".join(rung) for rung in ladder())


def filled(text: str, name: str, content: str) -> str:
    """A page's text with new content between the two comments that name it."""
    pattern = rf"(<!-- {name}: made by tools/rooms.py -->\n).*?(<!-- end -->)"
    new, count = re.subn(pattern, lambda found: f"{found[1]}\n{content}\n{found[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"expected one place for {name}, found {count}")
    return new


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    architecture, contributing, listing = (
        ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "rooms.md",
    )  # fmt: skip
    page = filled(architecture.read_text(encoding="utf-8"), "picture", picture())
    return {
        architecture: filled(page, "rooms", table()),
        contributing: filled(contributing.read_text(encoding="utf-8"), "ladder", in_words()),
        listing: filled(listing.read_text(encoding="utf-8"), "modules", modules()),
    }


def main() -> None:
    """Write the pages, or with --check say which are out of date."""
    old = [path for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in old:
            print(f"{path.relative_to(ROOT)} is out of date; run: python tools/rooms.py")
        raise SystemExit(bool(old))
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
