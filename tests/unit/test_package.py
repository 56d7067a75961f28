"""What the distribution offers, and what it leaves alone."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from repository import ROOT

import prefect_renderfarm.blocks
import prefect_renderfarm.flows


def test_public_names() -> None:
    """The names that others build on are there."""
    assert {
        "WorkerAdapter", "LocalAdapter", "VideoStitcher", "RemuxStitcher", "FfmpegStitcher",
        "WorkerJob", "WorkerResult", "StitchReport", "RenderFarmError",
    } <= set(prefect_renderfarm.blocks.__all__)  # fmt: skip
    assert {
        "render_job", "merge_job", "render_chunks", "RenderJob", "Chunk", "ChunkResult",
        "RenderReport", "clean_storage", "plan_job",
    } == set(prefect_renderfarm.flows.__all__)  # fmt: skip
    for package in (prefect_renderfarm.blocks, prefect_renderfarm.flows):
        for name in package.__all__:
            assert getattr(package, name).__doc__, name


# Each line may import those below it. Rooms on one line do not import each other, files do.
LAYERS = {
    "blocks": [
        ["adapters"],
        ["chunks"],
        ["stitchers", "assets"],
        ["storage"],
        ["media", "processes", "http"],
        ["runtime"],
        ["command", "base", "errors"],
    ],
    "flows": [
        ["render_job", "render_chunks", "merge_job", "clean_storage"],
        ["merging", "rendering"],
        ["state"],
        ["runs", "parameters"],
        ["jobs"],
        ["results"],
    ],
}
PACKAGES_BELOW = {"blocks": [], "flows": ["blocks"], "deployments": ["flows", "blocks"]}


def imported(path: Path) -> list[str]:
    """Return the modules that a module imports from, by their dotted names."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.append(node.module or "")
    return [name for name in names if name.startswith("prefect_renderfarm")]


def allowed(package: str, room: str, name: str) -> bool:
    """Return whether a file in a room of a package may import a module."""
    other, *rooms = name.split(".")[1:]
    if other != package:
        return other in PACKAGES_BELOW[package] and (bool(rooms) or package == "deployments")
    if package == "deployments" or room == "__init__":
        return True
    if not rooms:
        return False  # its own package's root
    layers = {room: place for place, rooms in enumerate(LAYERS[package]) for room in rooms}
    if layers[rooms[0]] == layers[room]:
        return room == rooms[0] or not (ROOT / package / room).is_dir()
    return layers[rooms[0]] > layers[room]


@pytest.mark.parametrize("package", PACKAGES_BELOW)
def test_dependencies_point_one_way(package: str) -> None:
    """Rooms import lower ones only, and nothing in them takes a name from a package's root."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 3
    wrong = []
    for path in files:
        place = path.relative_to(ROOT / package)
        room = place.parts[0].removesuffix(".py")
        names = [name for name in imported(path) if not allowed(package, room, name)]
        wrong += [f"{package}/{place} imports {name}" for name in names]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("package", "room", "name", "expected"),
    [
        ("blocks", "adapters", "prefect_renderfarm.blocks.chunks.render", True),
        ("blocks", "chunks", "prefect_renderfarm.blocks.adapters.local", False),
        ("blocks", "stitchers", "prefect_renderfarm.blocks.assets.workspace", False),
        ("blocks", "adapters", "prefect_renderfarm.blocks", False),
        ("blocks", "runtime", "prefect_renderfarm.flows.results", False),
        ("blocks", "runtime", "prefect_renderfarm.deployments", False),
        ("flows", "state", "prefect_renderfarm.blocks.storage.manifest", True),
        ("flows", "state", "prefect_renderfarm.blocks", False),
        ("flows", "jobs", "prefect_renderfarm.flows.state.identity", False),
        ("flows", "render_job", "prefect_renderfarm.deployments.farm", False),
        ("deployments", "farm", "prefect_renderfarm.flows", True),
    ],
)
def test_the_rule_on_dependencies(package: str, room: str, name: str, expected: bool) -> None:
    """The rule itself allows and forbids what it should."""
    assert allowed(package, room, name) is expected


@pytest.mark.parametrize("package", PACKAGES_BELOW)
def test_rooms_are_not_crowded(package: str) -> None:
    """No folder holds more than 14 Python files."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    crowded = {str(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert not {folder: count for folder, count in crowded.items() if count > 14}


LOCKS = [
    "requirements",
    *map("requirements-{}".format, ("runtime", "containers", "docs", "quality")),
]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_hashes_and_no_addresses(name: str) -> None:
    """A lock file pins every package by hash and names no index."""
    lines = (ROOT / f"{name}.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert len(pins) > 10
    assert all("==" in line and line.endswith("\\") for line in pins)
    assert not [line for line in lines if "://" in line or "index-url" in line]


def test_locks_agree() -> None:
    """The other lock files pin no other versions than the first: they share an environment."""
    pins: list[dict[str, set[str]]] = []
    for name in LOCKS:
        pins.append({})
        text = (ROOT / f"{name}.lock").read_text()
        for package, version in re.findall(r"^([\w.-]+)==([^ ;]+)", text, re.MULTILINE):
            pins[-1].setdefault(package, set()).add(version)
    first, *others = pins
    shared = [(found, first[name]) for other in others for name, found in other.items()
              if name in first]  # fmt: skip
    assert len(shared) > 10
    assert all(found <= wanted for found, wanted in shared)


def tracked(*folders: str) -> list[str]:
    """Return the repository's files, new ones included."""
    command = ["git", "ls-files", "-co", "--exclude-standard", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `python -m build` does."""
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "copy"
    for name in tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = folder.glob("*.whl")
    return built


def test_wheel_adds_one_name(wheel: Path) -> None:
    """The wheel holds `prefect_renderfarm` and its metadata, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    top = {name.split("/")[0] for name in names}
    assert sorted(top) == ["prefect_renderfarm", "prefect_renderfarm-0.1.0.dist-info"]
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: prefect<4,>=3.9.1" in metadata


def test_wheel_holds_every_file(wheel: Path) -> None:
    """Every module is in the wheel, and every file that a user without a clone needs."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix("prefect_renderfarm/") for name in archive.namelist()}
    # `make` calls it before it installs anything.
    wanted = set(tracked("blocks", "flows", "deployments")) - {"deployments/check_machine.sh"}
    assert {"deployments/prefect.yaml", "deployments/lambda/template.yaml"} <= wanted
    assert not wanted - held


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment that holds the wheel and its dependencies; return its Python.

    The dependencies are those of this environment, which stand behind the environment's own
    packages on the path.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_wheel_shows_its_blocks(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, Prefect finds the blocks by the package's entry point."""
    python = install(wheel, tmp_path / "venv")
    code = (
        "import importlib.metadata as m;"
        "entry = next(e for e in m.entry_points(group='prefect.collections')"
        " if e.name == 'prefect_renderfarm');"
        "print(entry.load().LocalAdapter.get_block_type_slug(), entry.load().__file__)"
    )
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(f"local-adapter {tmp_path}"), done.stdout + done.stderr


@pytest.mark.long
def test_first_film_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Without a clone: `renderfarm up`, `plan`, `render` make the README's film; `down` stops."""
    python = install(wheel, tmp_path / "venv")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    typed = next(block.splitlines() for block in blocks if "renderfarm plan" in block)
    plan, render = (shlex.split(line)[1:] for line in typed)

    def run(*words: str) -> str:
        done = subprocess.run(
            [python.parent / "renderfarm", *words], cwd=tmp_path, env=clean_environment(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        assert "worker-local: ready" in run("up")
        run(*plan)
        assert run("check", "film.json", "-o", "film.mp4") == "right: 8 chunks, 240 frames\n"
        last = run(*render).splitlines()[-1]
        assert last.startswith(f"film: {tmp_path / 'film.mp4'} (240 frames, 10.0 s, ")
        assert (tmp_path / "film.mp4").is_file()
        assert run("status").startswith("running: http://127.0.0.1:")
    finally:
        stopped = run("down")
    assert "server" in stopped
    assert (tmp_path / ".farm").is_dir()


def clean_environment() -> dict[str, str]:
    """Return this process's environment without Prefect's settings and Python's paths."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "PYTHON"))
    }
