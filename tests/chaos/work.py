"""A small job whose film is known frame by frame, and whose renderer notes what it begins."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from media_samples import Recipe, frame_hashes, write_clip

from prefect_renderfarm.flows import RenderJob, plan_job

CHUNKS, CHUNK_FRAMES, FPS = 6, 4, 24
# Writes a chunk in two parts, so that it can be ended in the middle of its file.
_RENDERER = """printf '%s %s\\n' "$1" "$(date +%s.%N)" >> "$3"
sleep "$4"
head -c 1500 {clips}/"$1".mp4 > "$2"
sleep "$4"
tail -c +1501 {clips}/"$1".mp4 >> "$2"
"""


@dataclass(frozen=True)
class Clips:
    """The chunks' files, rendered beforehand, and the program that writes them.

    Attributes:
        folder: Where they are.
        frames: The frames of the film, by their hashes.
        old: A whole film that is not the job's.
        old_frames: Its frames.
    """

    folder: Path
    frames: list[str]
    old: bytes
    old_frames: list[str]

    @classmethod
    def make(cls, folder: Path) -> Clips:
        """Render them into a folder."""
        recipe = Recipe(fps=Fraction(FPS))
        frames = []
        for number in range(CHUNKS):
            clip = write_clip(folder / f"{number}.mp4", number * CHUNK_FRAMES, CHUNK_FRAMES, recipe)
            frames += frame_hashes(clip)
        (folder / "render.sh").write_text(_RENDERER.format(clips=shlex.quote(str(folder))))
        old = write_clip(folder / "old.mp4", 1000, CHUNK_FRAMES, recipe)
        return cls(folder, frames, old.read_bytes(), frame_hashes(old))


@dataclass(frozen=True)
class Work:
    """One job in a folder of its own.

    Attributes:
        clips: What its chunks are.
        folder: The job folder.
        job: The job.
    """

    clips: Clips
    folder: Path
    job: RenderJob

    @classmethod
    def make(cls, clips: Clips, folder: Path, pause: float) -> Work:
        """Make a job that is called like its folder.

        Args:
            clips: What its chunks are.
            folder: The job folder.
            pause: Half of the seconds that a chunk takes.
        """
        folder.mkdir(parents=True)
        words = [str(clips.folder / "render.sh"), "{id}", "{output}", str(folder / "note")]
        job = plan_job(
            CHUNKS * CHUNK_FRAMES,
            FPS,
            chunks=CHUNKS,
            id=folder.name,
            command_template=" ".join(["sh", *words, str(pause)]),
        )
        return cls(clips, folder, job)

    def begun(self) -> Iterator[tuple[int, float]]:
        """Give which chunk was begun and when, in seconds since 1970, in order."""
        note = self.folder / "note"
        for line in note.read_text().splitlines() if note.exists() else []:
            number, moment = line.split()
            yield int(number), float(moment)

    def rendered(self) -> Counter[int]:
        """Return how often each chunk was begun."""
        return Counter(number for number, _ in self.begun())
