"""Builds the main wheel: the package, the in-tree backends and their C++ extensions.

Each folder under ``backends/`` is a project of its own, with a ``pyproject.toml`` that declares its entry points the
way a vendor's does. This file merges them, so that adding a backend touches its folder only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent
GROUP = "kernelforge.backends"
CXX_FLAGS = ["-O3", "-ffp-contract=off", "-fno-fast-math", "-fvisibility=hidden"]

packages = find_packages("src")
package_dir = {"": "src"}
package_data: dict[str, list[str]] = {
    "kernelforge": ["py.typed"],
    "": ["*.json", "tuning/*.json", "*.h", "*.cuh", "*.j2", "*.pyi"],
}
entry_points: dict[str, list[str]] = {"console_scripts": ["kernelforge = kernelforge.cli:main"], GROUP: []}
extensions = []

for project in sorted(ROOT.glob("backends/*/pyproject.toml")):
    folder = project.parent.relative_to(ROOT).as_posix()
    description = tomllib.loads(project.read_text())
    for name, value in description["project"]["entry-points"][GROUP].items():
        entry_points[GROUP].append(f"{name} = {value}")
    for package in find_packages(folder):
        packages.append(package)
        package_dir[package] = f"{folder}/{package.replace('.', '/')}"
    native = description.get("tool", {}).get("kernelforge", {})
    for package, sources in native.get("headers", {}).items():
        for folder_of_sources in [ROOT / sources, *(path for path in (ROOT / sources).rglob("*") if path.is_dir())]:
            relative = folder_of_sources.relative_to(ROOT / sources)
            packages.append(".".join([package, *relative.parts]))
            package_dir[packages[-1]] = folder_of_sources.relative_to(ROOT).as_posix()
            package_data[packages[-1]] = ["*.h", "*.cpp"]
    for module, sources in native.get("extensions", {}).items():
        files = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"{sources}/*.cpp"))
        extensions.append(
            Pybind11Extension(module, files, cxx_std=17, extra_compile_args=CXX_FLAGS, extra_link_args=["-pthread"])
        )

setup(
    packages=packages,
    package_dir=package_dir,
    package_data=package_data,
    entry_points=entry_points,
    ext_modules=extensions,
    cmdclass={"build_ext": build_ext},
)
