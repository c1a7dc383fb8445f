"""Proves the package that users get: the wheel, built from the source distribution and installed alone.

Run by `make wheel-test` with the development environment's Python. It works in a copy of the checkout, because what an
earlier build left behind (`build/lib`, `*.egg-info`) would bring files back that no longer exist. The throw-away
environment borrows torch and the other dependencies from the development environment through a `.pth` line; the `.pth`
files *there* are not read, so the editable install stays out of it.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

#: Folder of the checkout -> its place in site-packages.
ROOMS = {
    "crate_dsl": "crate_dsl",
    "compiler": "crate_dsl/compiler",
    "grammars": "crate_dsl/grammars",
    "specs": "crate_dsl/specs",
}
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "numpy",
    "networkx",
    "lark",
    "pydantic",
    "typer",
    "rich",
    "lightning",
)


def not_source(folder: str, names: list[str]) -> set[str]:
    """What `shutil.copytree` leaves behind: environments, caches and earlier builds."""
    left = set(fnmatch.filter(names, "__pycache__")) | set(fnmatch.filter(names, "*.pyc"))
    if Path(folder) == CHECKOUT:
        for pattern in (".git", ".venv", "build", "dist", "runs", "*.egg-info", ".*_cache", ".hypothesis"):
            left |= set(fnmatch.filter(names, pattern))
    return left


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed and return what it printed, with no trace of the checkout in its environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def build(copy: Path, outdir: Path) -> Path:
    """Build the sdist, then the wheel from the sdist (the default of `build`); return the wheel."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", outdir, copy, cwd=copy.parent)
    (wheel,) = outdir.glob("*.whl")
    return wheel


def check_content(copy: Path, wheel: Path) -> int:
    """Every file of every room is in the wheel, and nothing else is but the metadata. Returns their number."""
    expected = {
        f"{place}/{file.relative_to(copy / room).as_posix()}"
        for room, place in ROOMS.items()
        for file in (copy / room).rglob("*")
        if file.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    missing, strange = sorted(expected - found), sorted(found - expected)
    if missing:
        sys.exit(
            "Missing from the wheel (a folder without __init__.py, or a kind of file that package_data in setup.py"
            " does not name?):\n  " + "\n  ".join(missing)
        )
    if strange:
        sys.exit("In the wheel, but in no room of the checkout:\n  " + "\n  ".join(strange))
    return len(found)


def install(wheel: Path, environment: Path) -> Path:
    """Install the wheel alone; assert that `crate_dsl` is all that it adds to site-packages; return its bin folder."""
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    site_packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=environment).strip()
    )
    before = {entry.name for entry in site_packages.iterdir()}
    run(
        *(sys.executable, "-m", "pip", "--python", python),
        *("install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel),
        cwd=environment,
    )
    version = wheel.name.split("-")[1]
    added = {entry.name for entry in site_packages.iterdir()} - before
    if added != {"crate_dsl", f"crate_dsl-{version}.dist-info"}:
        sys.exit(f"The wheel adds to site-packages: {', '.join(sorted(added))}")
    (site_packages / "neighbours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def check_imports(python: Path, cwd: Path, home: Path) -> None:
    """Each room is imported from under `home`, and importing the package brings nothing heavy."""
    program = f"""
import sys
import crate_dsl
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, f"importing crate_dsl imports {{', '.join(loaded)}}"
import crate_dsl.compiler, crate_dsl.grammars, crate_dsl.specs
for module in (crate_dsl, crate_dsl.compiler, crate_dsl.grammars, crate_dsl.specs):
    assert module.__file__.startswith({str(home)!r}), f"{{module.__name__}} comes from {{module.__file__}}"
"""
    run(python, "-c", program, cwd=cwd)


def check_command(bin_folder: Path, cwd: Path) -> int:
    """`crate-dsl check` accepts every shipped spec, from an empty folder. Returns how many there are."""
    program = "from importlib.resources import files; print(files('crate_dsl.specs'))"
    folder = Path(run(bin_folder / "python", "-c", program, cwd=cwd).strip())
    specs = sorted(folder.glob("*.crate"))
    if not specs:
        sys.exit("The wheel ships no spec.")
    for spec in specs:
        run(bin_folder / "crate-dsl", "check", spec, cwd=cwd)
    return len(specs)


def main() -> None:
    """Build, install and use the wheel in a temporary folder."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crate-dsl-wheel-") as name:
        work = Path(name).resolve()
        copy, environment, empty = work / "checkout", work / "environment", work / "empty"
        empty.mkdir()
        shutil.copytree(CHECKOUT, copy, ignore=not_source)
        check_imports(Path(sys.executable), cwd=copy, home=copy)
        print("a checkout that is not installed imports its own rooms")
        wheel = build(copy, work / "dist")
        print(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB, built from the sdist")
        print(f"complete: {check_content(copy, wheel)} files, all of them under crate_dsl/")
        bin_folder = install(wheel, environment)
        check_imports(bin_folder / "python", cwd=empty, home=environment)
        print("installed alone: it adds crate_dsl and its metadata to site-packages, nothing else")
        specs = check_command(bin_folder, empty)
        print(f"from an empty folder: crate-dsl check accepts the {specs} shipped specs")
    print(f"wheel test passed in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
