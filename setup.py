"""Builds the encoder's kernels where there is a C++ compiler; without one the package computes with torch.

All instruction sets are built, which takes minutes. `BERTHEAD_BUILD=native` builds those of this processor alone: the
least and the best that it has. Objects are kept in `build/kernels`, and compiled again where something has changed.

For developers: `BERTHEAD_BUILD=sanitized` builds the same two with AddressSanitizer and UndefinedBehaviorSanitizer,
`BERTHEAD_BUILD=threads` with ThreadSanitizer, and `BERTHEAD_WERROR=1` takes warnings for errors.
"""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HEADERS = sorted(str(path) for path in Path("csrc").iterdir() if path.suffix in (".h", ".inc"))
# What the kernels use of other files' instructions they ask for themselves.
# -g0: with what debuggers read the library is twenty times as large, and the assembler needs 4 GB to write it.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]
LINK_FLAGS = ["-pthread"]
BUILD = os.environ.get("BERTHEAD_BUILD", "")
SANITIZERS = {
    "sanitized": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread"],
}
STRICT = BUILD in SANITIZERS or os.environ.get("BERTHEAD_WERROR") == "1"
if STRICT:
    FLAGS += ["-Werror"]
if BUILD in SANITIZERS:
    # Python compiles extensions with -fwrapv, and then no signed overflow is reported.
    sanitizers = [*SANITIZERS[BUILD], "-fno-wrapv"]
    # Of several -O and -g the last counts; with -g1 reports name lines.
    FLAGS += [*sanitizers, "-O1", "-g1", "-fno-omit-frame-pointer"]
    LINK_FLAGS += sanitizers


def features(source: Path) -> set[str]:
    """What the kernels in a file ask of a processor, without `-` and `_`; empty: nothing."""
    target = re.search(r'#pragma GCC target\("([^"]+)"\)', source.read_text(encoding="utf-8"))
    return set(re.sub("[-_]", "", target[1]).split(",")) if target else set()


def sources() -> list[str]:
    """The files to compile, those that take longest first."""
    found = sorted(Path("csrc").glob("*.cpp"), key=lambda path: (-len(features(path)), path.name))
    has = processor_features()
    if BUILD in ("native", *SANITIZERS) and has:
        usable = [path for path in found if features(path) and features(path) <= has]
        found = [path for path in found if not features(path) or path in usable[:1] + usable[-1:]]
    return [str(path) for path in found]


def processor_features() -> set[str]:
    """What this processor can do, named as `features` names it; empty: the system does not say so."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return set()
    return set(flags[1].replace("_", "").split()) if flags else set()


class BuildKernels(build_ext):
    """Compiles the sources side by side: a file of kernels takes up to two minutes."""

    def build_extension(self, ext: Extension) -> None:
        """Compile what has changed, and link the one extension; what others see of it is whole or absent."""
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        how = [*self.compiler.compiler_so, *ext.extra_compile_args, *ext.include_dirs, *self.compiler.include_dirs]
        kept = Path("build", "kernels", hashlib.sha256("\n".join(how).encode()).hexdigest()[:12])
        kept.mkdir(parents=True, exist_ok=True)

        def compiled(source: str) -> str:
            final = kept / f"{Path(source).stem}.o"
            if changed(final, [source, *ext.depends]):
                with TemporaryDirectory(dir=kept) as aside:
                    (made,) = self.compiler.compile(
                        [source], aside, include_dirs=ext.include_dirs, extra_postargs=ext.extra_compile_args
                    )
                    Path(made).replace(final)
            return str(final)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
            objects = list(pool.map(compiled, ext.sources))
        with TemporaryDirectory(dir=path.parent, prefix=".linking-") as aside:
            linked = Path(aside, path.name)
            self.compiler.link_shared_object(objects, str(linked), target_lang="c++", extra_postargs=LINK_FLAGS)
            linked.replace(path)


def changed(made: Path, inputs: list[str]) -> bool:
    """Whether a file is absent, or older than one that it is made of."""
    return not made.exists() or any(Path(one).stat().st_mtime > made.stat().st_mtime for one in inputs)


setup(
    ext_modules=[
        Extension("berthead.kernels._native", sources(), depends=HEADERS, extra_compile_args=FLAGS, optional=not STRICT)
    ],
    cmdclass={"build_ext": BuildKernels},
)
