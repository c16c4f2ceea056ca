"""Build the extension; everything else about the package is in pyproject.toml.

PORTSECCOMP_SANITIZE=address,undefined builds it with those sanitisers.
PORTSECCOMP_DEBUG=1 builds it without optimisation.
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

compile_args = ["-std=c11", "-D_GNU_SOURCE", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Cython's own output is not ours to lint.
compile_args += ["-Wno-unused-parameter", "-Wno-unused-function"]
link_args = ["-pthread"]

if os.environ.get("PORTSECCOMP_DEBUG"):
    compile_args += ["-O0", "-g"]
else:
    compile_args += ["-O2"]

if sanitizers := os.environ.get("PORTSECCOMP_SANITIZE"):
    flags = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"]
    compile_args += flags
    link_args += flags

core = Extension(
    "portseccomp._core",
    sources=["portseccomp/_core.pyx", *sorted(glob("csrc/*.c"))],
    depends=[*glob("csrc/*.h"), "portseccomp/core.pxd"],
    include_dirs=["csrc"],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)

setup(
    ext_modules=cythonize(
        [core],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "auto_pickle": False,
            "autotestdict": False,
        },
    )
)
