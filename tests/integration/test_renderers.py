"""Real renderers: the README's templates as they stand, compared with one render of the whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from repository import ROOT

from prefect_renderfarm.blocks import FfmpegStitcher, LocalAdapter, RemuxStitcher
from prefect_renderfarm.blocks.processes.programs import path_with_ffmpeg
from prefect_renderfarm.flows import plan_job, render_job

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("api")]
FRAMES, FPS = 10, 24
needs_blender = pytest.mark.skipif(
    shutil.which("blender") is None, reason="blender is not installed"
)
needs_remotion = pytest.mark.skipif(
    None in map(shutil.which, ("npm", "chromium")), reason="npm or chromium is not installed"
)
needs_povray = pytest.mark.skipif(shutil.which("povray") is None, reason="povray is not installed")
# A cube that turns, in pixels that Cycles computes in the same way whatever the range.
SCENE = """
import bpy, os
scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "CPU", 2, False
scene.render.resolution_x, scene.render.resolution_y = 96, 64
scene.render.resolution_percentage, scene.render.fps = 100, 24
scene.frame_start, scene.frame_end = 1, 10
cube = bpy.data.objects["Cube"]
cube.keyframe_insert("rotation_euler", frame=1)
cube.rotation_euler.z = 2
cube.keyframe_insert("rotation_euler", frame=10)
scene.sequence_editor_create().sequences.new_sound("tone", os.path.abspath("tone.wav"), 1, 1)
bpy.ops.wm.save_as_mainfile(filepath=os.path.abspath("scene.blend"))
"""
POVRAY = """
camera { location <0, 1, -4> look_at 0 }
light_source { <5, 5, -5> color rgb 1 }
box { -0.7, 0.7 rotate y * 90 * clock texture { pigment { color rgb <1, 0.2, 0.1> } } }
"""
POVRAY_SCRIPT = """
set -e
povray scene.pov +W96 +H64 -D +FN +KFI1 +KFF10 +SF$1 +EF$2 +Oframe_.png >povray.log 2>&1
ffmpeg -nostdin -v error -y -framerate 24 -start_number $1 -i frame_%02d.png -c:v ffv1 $3
"""
REMOTION = {
    "package.json": json.dumps(
        {"dependencies": {"@remotion/cli": "4.0.529", "remotion": "4.0.529",
                          "react": "19.2.0", "react-dom": "19.2.0"}}
    ),
    "tsconfig.json": json.dumps({"compilerOptions": {"module": "es2020", "jsx": "react-jsx"}}),
    "remotion.config.ts": """
import { Config } from "@remotion/cli/config";
Config.setBrowserExecutable("chromium at its place");
""",
    "src/index.ts": """
import { createElement } from "react";
import { AbsoluteFill, Composition, Html5Audio, registerRoot, staticFile } from "remotion";
import { useCurrentFrame } from "remotion";

const Picture = () => {
  const frame = useCurrentFrame();
  const tone = createElement(Html5Audio, { src: staticFile("tone.wav") });
  const backgroundColor = `rgb(${20 * frame}, 90, 200)`;
  return createElement(AbsoluteFill, { style: { backgroundColor } }, tone);
};
const film = {
  id: "Film", component: Picture, width: 96, height: 64, fps: 24, durationInFrames: 11,
};
registerRoot(() => createElement(Composition, film));
""",
}  # fmt: skip


def template(renderer: str) -> str:
    """Return a renderer's command template in the README."""
    row = re.search(rf"^\| {renderer} \| `([^`]+)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert row is not None
    return row[1]


def render(folder: Path, command: str, output: str, film: str, stitcher: Any) -> Any:
    """Render a job of three chunks, and assemble its film."""
    job = plan_job(
        FRAMES, FPS, chunks=3, start_frame=1, output_template=output, command_template=command
    )
    return render_job(
        job, adapter=LocalAdapter(), stitcher=stitcher, output_file=folder / film, job_dir=folder,
        concurrency=1,
    )  # fmt: skip


def decoded(path: Path) -> list[np.ndarray]:
    """Return the pictures of a film."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]


def run(folder: Path, *words: str) -> None:
    """Run a renderer."""
    own = os.environ | {"PWD": str(folder)}  # by which Blender finds its files
    done = subprocess.run(words, cwd=folder, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def write_tone(path: Path) -> None:
    """Write a second of sound."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        wave = (8000 * np.sin(np.arange(48_000) / 20)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(
            np.repeat(wave, 2).reshape(1, -1), format="s16", layout="stereo"
        )
        frame.sample_rate = 48_000
        output.mux(stream.encode(frame))


def sound(path: Path) -> np.ndarray:
    """Return the samples of a film's first channel."""
    with av.open(str(path)) as container:
        parts = [frame.to_ndarray().reshape(-1, 2) for frame in container.decode(audio=0)]
    return np.concatenate(parts)[:, 0].astype(int)


@pytest.fixture(scope="module")
def blender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a scene, and its pictures by one render of the whole."""
    folder = tmp_path_factory.mktemp("blender")
    write_tone(folder / "tone.wav")
    (folder / "scene.py").write_text(SCENE)
    run(folder, "blender", "-b", "--factory-startup", "--python", "scene.py")
    run(folder, "blender", "-b", "scene.blend", "-F", "PNG", "-o", f"{folder}/whole/####", "-a")
    return folder


def whole(folder: Path) -> list[np.ndarray]:
    """Return the pictures of one render of the whole."""
    return [picture for path in sorted((folder / "whole").iterdir()) for picture in decoded(path)]


@needs_blender
def test_blender_as_in_the_readme(blender: Path) -> None:
    """The film has each picture of the one render, as far as H.264 keeps it."""
    report = render(
        blender, template("Blender"), "chunks/{id}.mp4", "film.mp4", RemuxStitcher(audio="none")
    )
    assert report.stitch.frames == FRAMES
    for made, expected in zip(decoded(blender / "film.mp4"), whole(blender), strict=True):
        assert np.abs(made - expected).mean() < 6


@needs_blender
@pytest.mark.parametrize("kind", ["PNG", "OPEN_EXR"])
def test_pictures_of_blender(blender: Path, kind: str) -> None:
    """Pictures become one sequence, and PNG a film without loss."""
    command = f"blender -b scene.blend -F {kind} -o {{output}}#### -s {{start}} -e {{last}} -a"
    ending = "png" if kind == "PNG" else "exr"
    sequence = f"final {ending}/%04d.{ending}"
    report = render(blender, command, f"{ending}/{{id}}/", sequence, FfmpegStitcher())
    assert report.stitch.frames == FRAMES
    assert len(list((blender / sequence).parent.iterdir())) == FRAMES
    if kind == "PNG":
        lossless = FfmpegStitcher(video_codec="ffv1")
        render(blender, command, f"{ending}/{{id}}/", "pictures.mkv", lossless)
        for made, expected in zip(decoded(blender / "pictures.mkv"), whole(blender), strict=True):
            assert np.array_equal(made, expected)


@needs_blender
def test_sound_of_blenders_sequencer(blender: Path) -> None:
    """PCM in whole packets is joined without a gap."""
    setup = (
        "import bpy; f = bpy.context.scene.render.ffmpeg; f.format = 'MKV'; f.codec = 'H264'; "
        "f.audio_codec = 'PCM'; f.audio_mixrate = 48000"
    )
    command = (
        f'blender -b scene.blend --python-expr "{setup}" -F FFMPEG -o {{output}} -s {{start}} '
        "-e {last} -a"
    )
    render(blender, command, "sound/{id}.mkv", "sound.mkv", RemuxStitcher())
    heard = sound(blender / "sound.mkv")
    assert len(heard) == FRAMES * 48_000 // FPS
    expected = (8000 * np.sin(np.arange(len(heard)) / 20)).astype(int)
    assert np.abs(heard - expected).max() < 40  # mixed in floating point, written in 16 bits


@pytest.fixture(scope="module")
def remotion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a project of Remotion."""
    folder = tmp_path_factory.mktemp("remotion")
    (folder / "src").mkdir()
    (folder / "public").mkdir()
    write_tone(folder / "public" / "tone.wav")
    for name, text in REMOTION.items():
        chromium = str(shutil.which("chromium"))
        (folder / name).write_text(text.replace("chromium at its place", chromium))
    install = ["npm", "install", "--no-audit", "--no-fund"]
    if subprocess.run(install, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("npm cannot install Remotion: is a registry reachable?")
    return folder


@needs_remotion
def test_remotion_as_in_the_readme(remotion: Path) -> None:
    """The film has each picture of the one render, as far as H.264 keeps it."""
    command = template("Remotion")
    stitcher = RemuxStitcher()
    report = render(remotion, command, "chunks/{id}.mp4", "film.mp4", stitcher)
    assert report.stitch.frames == FRAMES
    words = command.format(output="whole.mp4", start=1, last=FRAMES).split()
    run(remotion, *words)
    pictures = decoded(remotion / "film.mp4")
    for made, expected in zip(pictures, decoded(remotion / "whole.mp4"), strict=True):
        assert np.abs(made - expected).mean() < 3


@needs_remotion
def test_prores_and_pcm_of_remotion(remotion: Path) -> None:
    """ProRes with transparency and PCM is joined as one render has it, to the sample."""
    options = (
        " --codec=prores --prores-profile=4444 --pixel-format=yuva444p10le --image-format=png "
        "--audio-codec=pcm-16"
    )
    command = template("Remotion").replace(" --muted", options)
    render(remotion, command, "prores/{id}.mov", "film.mov", RemuxStitcher())
    run(remotion, *command.format(output="whole.mov", start=1, last=FRAMES).split())
    pictures = decoded(remotion / "film.mov")
    for made, expected in zip(pictures, decoded(remotion / "whole.mov"), strict=True):
        assert np.abs(made - expected).max() < 3
    with av.open(str(remotion / "film.mov")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "ap4h"
    heard = sound(remotion / "film.mov")
    assert len(heard) == FRAMES * 48_000 // FPS
    assert np.abs(heard - sound(remotion / "whole.mov")).max() < 3


@needs_povray
def test_povray_as_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The film has the pixels of one render of the whole."""
    monkeypatch.setenv("PATH", path_with_ffmpeg("/usr/local/bin:/usr/bin:/bin"))
    (tmp_path / "scene.pov").write_text(POVRAY)
    (tmp_path / "povray.sh").write_text(POVRAY_SCRIPT)
    render(tmp_path, template("POV-Ray"), "chunks/{id}.mkv", "film.mkv", RemuxStitcher())
    run(tmp_path, "sh", "povray.sh", "1", str(FRAMES), "whole.mkv")
    pictures = decoded(tmp_path / "film.mkv")
    assert len(pictures) == FRAMES
    for made, expected in zip(pictures, decoded(tmp_path / "whole.mkv"), strict=True):
        assert np.array_equal(made, expected)
