"""Which tests `make check` leaves out, from the times of a whole run: python tools/slow_tests.py JUNIT.xml

tests/slow.txt gets the names of all tests that took longer than a fifth of a second. A test that is not named there
is taken for a fast one, so a new test runs in `make check` until this was run again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

SLOW = Path(__file__).resolve().parent.parent / "tests" / "slow.txt"
SECONDS = 0.2


def slow_tests(report: Path) -> list[str]:
    """The tests of a report of pytest that took longer, as `test_file.py::test[case]`, sorted."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return sorted(
        f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
        for case in cases
        if float(case.get("time", 0)) > SECONDS
    )


if __name__ == "__main__":
    found = slow_tests(Path(sys.argv[1]))
    SLOW.write_text("".join(f"{name}\n" for name in found), encoding="utf-8")
    print(f"{len(found)} tests took longer than {SECONDS} s: tests/slow.txt")
