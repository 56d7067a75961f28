"""Assemble chunk files, one film each, in a process that a test watches: `stitch_all.py FOLDER`.

The folder has films to be made, one a line of `plan.txt`: stitcher, name of the film, chunk files.
A line of JSON tells of each film what became of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
from encoder_samples import FPS, FRAMES, picture_hashes

from prefect_renderfarm.blocks import FfmpegStitcher, RemuxStitcher, RenderFarmError
from prefect_renderfarm.blocks.media.model import Verify
from prefect_renderfarm.blocks.media.reader import read_media

STITCHERS = {"remux": RemuxStitcher, "ffmpeg": FfmpegStitcher}


def outcome(stitcher: str, chunks: list[Path], film: Path) -> str:
    """Return the refusal, or whether the film has the pictures of its chunks."""
    try:
        counts = [FRAMES] * len(chunks)
        STITCHERS[stitcher](audio="encode", audio_codec="flac").stitch(
            chunks, film, fps=FPS, frame_counts=counts
        )
    except RenderFarmError as error:
        return f"refused: {type(error).__name__}: {error}"
    if any(map(damaged, chunks)):
        return "damaged"  # what a decoder shows of it depends on what came before
    expected = [each for path in chunks for each in picture_hashes(path)]
    if picture_hashes(film) == expected:
        return "published"
    # Decoders conceal damage that they do not notice, by what they have decoded before.
    same = packets(film) == [packet for path in chunks for packet in packets(path)]
    return "damaged" if same else "wrong"


def packets(path: Path) -> list[bytes]:
    """Return the data of each packet of a file's video."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def damaged(path: Path) -> bool:
    """Return whether a strict decoder finds fault with a file's pictures."""
    try:
        read_media(path, verify=Verify.DECODE)
    except RenderFarmError:
        return True
    return False


def main(folder: Path) -> None:
    """Make all films."""
    for line in (folder / "plan.txt").read_text().splitlines():
        stitcher, film, *chunks = line.split("\t")
        told = outcome(stitcher, [folder / chunk for chunk in chunks], folder / film)
        print(json.dumps([film, told]), flush=True)
        (folder / film).unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
