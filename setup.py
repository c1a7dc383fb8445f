"""Maps the rooms at the top of the repository into the one installed package. Everything else stands in pyproject.toml.

The packages are computed and not listed: an explicit list silently leaves a new folder out of the wheel.
"""

from setuptools import find_packages, setup

#: Installed package -> the folder it lives in.
ROOMS = {
    "crate_dsl": "crate_dsl",
    "crate_dsl.compiler": "compiler",
    "crate_dsl.grammars": "grammars",
    "crate_dsl.specs": "specs",
}

setup(
    package_dir=ROOMS,
    packages=[
        package
        for room, folder in ROOMS.items()
        for package in (room, *(f"{room}.{inner}" for inner in find_packages(folder)))
    ],
    package_data={
        "": ["*.lark", "*.crate", "py.typed", "**/*.html", "**/*.j2"],
        "crate_dsl.language": ["explanations/*.md", "tables.json"],
    },
    include_package_data=False,
)
