"""Builds the encoder's kernels where there is a C++ compiler; without one the package computes with torch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("csrc").iterdir() if path.suffix in (".h", ".inc"))
# What the kernels use of other files' instructions they ask for themselves.
# -g0: with what debuggers read the library is twenty times as large, and the assembler needs 4 GB to write it.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]


class BuildKernels(build_ext):
    """Compiles the sources side by side: each takes some ten seconds."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link the one extension."""
        path = self.get_ext_fullpath(ext.name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)

        def compiled(source: str) -> list[str]:
            return self.compiler.compile(
                [source], self.build_temp, include_dirs=ext.include_dirs, extra_postargs=ext.extra_compile_args
            )

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
            objects = [one for some in pool.map(compiled, ext.sources) for one in some]
        self.compiler.link_shared_object(objects, path, target_lang="c++", extra_postargs=["-pthread"])


setup(
    ext_modules=[
        Extension("berthead.kernels._native", SOURCES, depends=HEADERS, extra_compile_args=FLAGS, optional=True)
    ],
    cmdclass={"build_ext": BuildKernels},
)
