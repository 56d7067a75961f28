"""The README is true: its commands run, its code runs, its files are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from farm_client import FarmClient
from jobs import save_job, small_job
from media_samples import frame_hashes
from repository import ROOT
from storage_samples import ACCESS_KEY, REGION, S3Server, keys

from prefect_renderfarm.flows import RenderJob, plan_job

README = (ROOT / "README.md").read_text()
ASSEMBLY = (ROOT / "docs" / "assembly.md").read_text()
CLOUD = (ROOT / "docs" / "cloud.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return a document's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def type_in(api: FarmClient, folder: Path, lines: list[str], completed: int) -> str:
    """Type commands, each of which must succeed; return what they print, so many runs included."""
    [save_blocks] = blocks(README, "python")
    (folder / "save_blocks.py").write_text(save_blocks)
    done = subprocess.run(
        ["bash", "-euxc", "\n".join(lines)],
        cwd=folder,
        env=api.farm.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ended = re.findall(r"^film: |finished successfully in 'Completed'", done.stdout, re.MULTILINE)
    assert len(ended) == completed, done.stdout
    return done.stdout


def lines_to_type() -> list[str]:
    """Return what the README and the page on assembly tell a user to type, in its order."""
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    lines.insert(3, "python save_blocks.py")
    return lines + [line for block in blocks(ASSEMBLY, "sh") for line in block.splitlines()]


@pytest.mark.long
def test_five_minutes(api: FarmClient, tmp_path: Path) -> None:
    """The first two films of the README are made as it says."""
    first = lines_to_type()[:6]
    told = type_in(api, tmp_path, first, 3)
    frames = frame_hashes(tmp_path / "film.mp4")
    assert len(frames) == len(frame_hashes(tmp_path / "web.mp4")) == 240
    assert frame_hashes(tmp_path / "again.mp4") == frame_hashes(tmp_path / "web.mp4")
    assert "nightly" in told or "0 2 * * *" in told


@pytest.mark.long
def test_all_that_is_typed(api: FarmClient, tmp_path: Path) -> None:
    """What the README and the page on assembly tell a user to type works, in its order."""
    lines = lines_to_type()
    assert len(lines) == 10
    type_in(api, tmp_path, lines, 6)
    frames = frame_hashes(tmp_path / "film.mp4")
    assert len(frames) == len(frame_hashes(tmp_path / "web.mp4")) == 240
    for film in ("again.mkv", "second.mkv", "third.mov"):
        assert frame_hashes(tmp_path / film) == frames


@pytest.mark.long
def test_cloud_page(api: FarmClient, s3: S3Server, tmp_path: Path) -> None:
    """What the page on the cloud tells a user to type on his own machine works, in its order."""
    storage, functions = blocks(CLOUD, "python")
    (tmp_path / "storage.py").write_text(storage)
    (tmp_path / "functions.py").write_text(functions)
    save_job(tmp_path, small_job(), "film.json")
    lines = [line for block in blocks(CLOUD, "sh") for line in block.splitlines()]
    assert len(lines) == 4
    bucket = s3.new_bucket()
    farm = {
        "FARM_KEY_ID": ACCESS_KEY,
        "FARM_SECRET": s3.secret,
        "FARM_REGION": REGION,
        "FARM_ENDPOINT": s3.url,
        "FARM_BUCKET": bucket.bucket_name,
        "FARM_FUNCTION": "renderfarm-worker",
    }
    done = subprocess.run(
        ["bash", "-euxc", "\n".join([*lines, "python functions.py"])],
        cwd=tmp_path,
        env=api.farm.environment() | farm,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("finished successfully in 'Completed'") == 3, done.stdout
    assert len(frame_hashes(tmp_path / "home.mp4")) == 18
    assert "films/film.mp4" in keys(bucket)


def test_make_commands_are_targets() -> None:
    """Every `make` command of the documents is a target."""
    makefile = (ROOT / "Makefile").read_text()
    documents = README + ASSEMBLY + (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"make ([a-z]+)", documents)) - {"things"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize(
    "template",
    re.findall(r"^\| (?:Blender|Remotion|Helios|POV-Ray) \| `([^`]+)`", README, re.MULTILINE),
)
def test_templates_can_be_planned(template: str) -> None:
    """The renderers' templates make valid jobs."""
    job = plan_job(100, 24, command_template=template, chunks=4)
    assert "{" not in job.chunks[3].command
    assert job.chunks[3].output_file in job.chunks[3].command


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GUIDES = [page for page in PAGES if page.parent.name == "guides" and "plan_job" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every file that a page links to is there."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_guides_plan_jobs(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of each renderer's guide writes a valid job, whose chunks are all different."""
    monkeypatch.chdir(tmp_path)
    [code] = blocks(guide.read_text(), "python")
    exec(compile(code, guide.name, "exec"), {})  # noqa: S102
    [file] = tmp_path.glob("*.json")
    job = RenderJob.model_validate_json(file.read_text())
    assert len({chunk.command for chunk in job.chunks}) == len(job.chunks) > 1
