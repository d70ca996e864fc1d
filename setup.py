"""Builds the encoder's kernels where there is a C++ compiler; without one the package computes with torch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("csrc").iterdir() if path.suffix in (".h", ".inc"))
# What the kernels use of other files' instructions they ask for themselves.
# -g0: with what debuggers read the library is twenty times as large, and the assembler needs 4 GB to write it.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# They come last, so they count. -g1: reports name lines.
SANITIZED_FLAGS = [*SANITIZERS, "-O1", "-g1", "-fno-omit-frame-pointer"]


class BuildKernels(build_ext):
    """Compiles the sources side by side: each takes some ten seconds."""

    user_options: ClassVar = [
        *build_ext.user_options,
        ("kernels=", None, "for developers: the instruction sets to build, separated by commas (default: all)"),
        ("sanitize", None, "for developers: with AddressSanitizer and UndefinedBehaviorSanitizer"),
        ("werror", None, "for developers: warnings are errors"),
    ]
    boolean_options: ClassVar = [*build_ext.boolean_options, "sanitize", "werror"]

    def initialize_options(self) -> None:
        """Set the defaults."""
        super().initialize_options()
        self.kernels: str | None = None
        self.sanitize = self.werror = False

    def build_extension(self, ext: Extension) -> None:
        """Compile and link the one extension."""
        path = self.get_ext_fullpath(ext.name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Users without a compiler install the package without kernels; a developer's check has to fail.
        ext.optional = ext.optional and not (self.kernels or self.sanitize or self.werror)
        flags = [*ext.extra_compile_args, *(SANITIZED_FLAGS if self.sanitize else []), *["-Werror"] * self.werror]

        def compiled(source: str) -> list[str]:
            return self.compiler.compile([source], self.build_temp, include_dirs=ext.include_dirs, extra_postargs=flags)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
            objects = [one for some in pool.map(compiled, filter(self._is_built, ext.sources)) for one in some]
        linked = ["-pthread", *(SANITIZERS if self.sanitize else [])]
        self.compiler.link_shared_object(objects, path, target_lang="c++", extra_postargs=linked)

    def _is_built(self, source: str) -> bool:
        kind, _, name = Path(source).stem.partition("_")
        return self.kernels is None or kind != "kernels" or name in self.kernels.split(",")


setup(
    ext_modules=[
        Extension("berthead.kernels._native", SOURCES, depends=HEADERS, extra_compile_args=FLAGS, optional=True)
    ],
    cmdclass={"build_ext": BuildKernels},
)
