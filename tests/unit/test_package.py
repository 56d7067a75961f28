"""What the distribution offers, and what it leaves alone."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from repository import ROOT

import prefect_renderfarm.blocks
import prefect_renderfarm.flows

PACKAGES = [prefect_renderfarm.blocks, prefect_renderfarm.flows]


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
    for package in PACKAGES:
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


def layer_of(package: str, room: str) -> int:
    """Return how far up a room stands in its package."""
    [place] = [place for place, rooms in enumerate(LAYERS[package]) if room in rooms]
    return -place


def imported(path: Path) -> list[str]:
    """Return the modules that a module imports from, by their dotted names."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.append(node.module or "")
    return [name for name in names if name.startswith("prefect_renderfarm")]


@pytest.mark.parametrize("package", LAYERS)
def test_dependencies_point_one_way(package: str) -> None:
    """Rooms import lower ones only, and nothing takes a name from a package's root."""
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for name in imported(path):
            other, *rooms = name.split(".")[1:]
            if room == "__init__" or ((package, other) == ("flows", "blocks") and rooms):
                continue
            if other != package or not rooms:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
                continue
            mine, its = layer_of(package, room), layer_of(package, rooms[0])
            if its > mine or (
                its == mine and (ROOT / package / room).is_dir() and room != rooms[0]
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", LAYERS)
def test_rooms_are_not_crowded(package: str) -> None:
    """No folder holds more than 14 Python files."""
    folders = [ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())]
    assert not [folder for folder in folders if len(list(folder.glob("*.py"))) > 14 + 1]


def test_lock_has_hashes_and_no_addresses() -> None:
    """The lock file pins every package by hash and names no index."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert len(pins) > 50
    assert all("==" in line and line.endswith("\\") for line in pins)
    assert not [line for line in lines if "://" in line or "index-url" in line]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `python -m build` does."""
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "copy"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in tracked:
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
    assert {"prefect_renderfarm/blocks/py.typed", "prefect_renderfarm/flows/py.typed"} <= set(names)
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: prefect<4,>=3.9.1" in metadata


def test_wheel_shows_its_blocks(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, Prefect finds the blocks by the package's entry point."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            tmp_path,
            wheel,
        ],
        check=True,
    )
    code = (
        "import sys, importlib.metadata as m; sys.path.insert(0, sys.argv[1]);"
        "[e] = [e for e in m.entry_points(group='prefect.collections')"
        " if e.name == 'prefect_renderfarm' and sys.argv[1] in str(e.dist._path)];"
        "print(e.load().LocalAdapter.get_block_type_slug(), e.load().__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("local-adapter "), done.stderr
