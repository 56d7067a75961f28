"""Chunks with flipped bytes: no process ends of them, and no film differs from its chunks."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from encoder_samples import pictures, run_ffmpeg, write_chunks
from repository import ROOT

KINDS = {
    "h264.mp4": "-c:v libx264 -preset ultrafast",
    "hevc.mp4": "-c:v libx265 -preset ultrafast -x265-params log-level=0",
    "prores.mov": "-c:v prores_ks",
    "h264.mkv": "-c:v libx264 -preset ultrafast",
    "vp9.webm": "-c:v libvpx-vp9 -deadline realtime -cpu-used 8",
    "h264.ts": "-c:v libx264 -preset ultrafast",
    "sound.mov": "-c:v mjpeg -pix_fmt yuvj420p -c:a pcm_s16le -ac 6",
    "sound.mp4": "-c:v libx264 -preset ultrafast -c:a aac",
    "sound.mkv": "-c:v ffv1 -c:a flac",
}
# Headers and tables lie at the beginning and at the end of a file.
EDGE = 3000


def fuzzed(data: bytes, draw: random.Random) -> bytes:
    """Return a file with some bytes altered, most of them in headers and tables."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        place = draw.choice([
            draw.randrange(min(EDGE, len(data))),
            draw.randrange(max(0, len(data) - EDGE), len(data)),
            draw.randrange(len(data)),
        ])  # fmt: skip
        changed[place] = draw.choice([0, 255, 1, changed[place] ^ 1 << draw.randrange(8)])
    return bytes(changed)


@pytest.mark.parametrize("each", [1, pytest.param(48, marks=pytest.mark.long)])
def test_fuzzed_chunks(each: int, tmp_path: Path) -> None:
    """The process that assembles them goes on, and each film is right, or there is none."""
    draw, plan = random.Random(16), []  # noqa: S311 -- the same at every run
    for kind, options in KINDS.items():
        folder, ending = tmp_path / kind, Path(kind).suffix
        folder.mkdir()
        if "sound" in kind:
            good = []
            for number in range(2):
                good.append(folder / f"{number}{ending}")
                sound = ["-f", "lavfi", "-i", "sine=r=48000:d=0.2"]
                run_ffmpeg(*pictures(number * 5), *sound, *options.split(), good[-1])
        else:
            good = write_chunks(folder, ending, options, count=2)
        for number in range(each):
            bad = folder / f"bad{number}{ending}"
            bad.write_bytes(fuzzed(good[1].read_bytes(), draw))
            for stitcher in ("remux", "ffmpeg"):
                if stitcher == "ffmpeg" and number % 8:
                    continue
                chunks = [good[0], bad] if number % 2 else [bad, good[0]]
                names = [str(path.relative_to(tmp_path)) for path in chunks]
                plan.append("\t".join([stitcher, f"{kind}{number}{stitcher}.mkv", *names]))
    (tmp_path / "plan.txt").write_text("\n".join(plan))
    support = ROOT / "tests" / "support"
    done = subprocess.run(
        [sys.executable, str(support / "stitch_all.py"), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (told[-1:], done.stderr[-2000:])
    assert len(told) == len(plan)
    print(Counter(outcome.split(":")[0] for _, outcome in told))
    assert [film for film, outcome in told if outcome == "wrong"] == []
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["plan.txt"]
