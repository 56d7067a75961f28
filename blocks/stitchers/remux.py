"""Assembly by copying packets, in this process, onto an exact frame grid."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from prefect_renderfarm.blocks.errors import NotAppendableError, StitchInputError
from prefect_renderfarm.blocks.media.image_sequence import is_image_sequence
from prefect_renderfarm.blocks.media.model import Media
from prefect_renderfarm.blocks.stitchers.audio_plan import check_track
from prefect_renderfarm.blocks.stitchers.base import GrowingFilm, StitchReport
from prefect_renderfarm.blocks.stitchers.checked import CheckedStitcher
from prefect_renderfarm.blocks.stitchers.chunk_check import ChunkCheck
from prefect_renderfarm.blocks.stitchers.film_check import FilmFigures, check_figures
from prefect_renderfarm.blocks.stitchers.muxer import FilmOptions, FilmWriter, writing
from prefect_renderfarm.blocks.stitchers.progress import watcher
from prefect_renderfarm.blocks.storage.publish import publishing


class RemuxStitcher(CheckedStitcher):
    """Copy the chunks' video packets into one film, bit for bit, each frame exactly on its time.

    Nothing is decoded or encoded, except sound where that is asked for. Chunks must come from the
    same encoder with the same settings; others are refused.

    Example:
        Load a saved stitcher and assemble a film:
        ```python
        from pathlib import Path
        from prefect_renderfarm.blocks import RemuxStitcher

        stitcher = RemuxStitcher.load("BLOCK_NAME")
        stitcher.stitch([Path("0.mp4"), Path("1.mp4")], Path("film.mp4"), fps=24)
        ```
    """

    _block_type_name: ClassVar[str | None] = "Remux Stitcher"
    _block_type_slug: ClassVar[str | None] = "remux-stitcher"
    _description: ClassVar[str | None] = (
        "Assemble chunks into one film by copying packets onto an exact frame grid. "
        "Every chunk is checked before, the film after."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_removed_fields(cls, values: Any) -> Any:
        """Load block documents of earlier versions, which had a field `on_mismatch`."""
        if isinstance(values, dict):
            values = {key: value for key, value in values.items() if key != "on_mismatch"}
        return values

    def check_output(self, output: Path, inputs: Sequence[Path] = ()) -> None:
        """Refuse a film without a container, and image sequences."""
        super().check_output(output, inputs)
        for path in inputs:
            if is_image_sequence(path):
                raise StitchInputError(
                    f"chunk file {str(path)!r} is an image sequence, which has to be encoded: "
                    "choose an ffmpeg-stitcher with a 'video_codec'"
                )

    def grow(
        self,
        inputs: Sequence[Path],
        output: Path,
        *,
        fps: float | str | Fraction,
        frame_counts: Sequence[int],
    ) -> AbstractContextManager[GrowingFilm]:
        """Begin a film to which chunks are added as they come. See `VideoStitcher`."""
        output = Path(output).absolute()
        self.check_output(output, inputs)
        return self._growing(self._chunk_check(inputs, output, fps, frame_counts), output)

    @contextmanager
    def _growing(self, check: ChunkCheck, output: Path) -> Iterator[GrowingFilm]:
        with publishing(output) as temporary:
            film = _RemuxedFilm(self, check, temporary, output)
            try:
                yield film
                film.finish()
            except BaseException:
                film.abandon()
                raise
        film.published()

    def _assemble(self, chunks: Sequence[Media], film: Path, check: ChunkCheck) -> FilmFigures:
        tell = watcher()
        writer = self._writer(chunks[0], film, check, max(chunk.reorder for chunk in chunks))
        try:
            with writing(film):
                for chunk in chunks:
                    writer.append(chunk)
                    tell(writer.frames, writer.size)
                figures = writer.close()
        except BaseException:
            writer.abandon()
            raise
        return check_figures(figures, writer.frames, len(chunks), check.sound.mode)

    def _writer(self, first: Media, film: Path, check: ChunkCheck, reorder: int) -> FilmWriter:
        options = FilmOptions(self.audio_codec, self.audio_bitrate, self.faststart)
        return FilmWriter(film, first, check.sound, options, reorder, check.total_frames)


class _RemuxedFilm(GrowingFilm):
    def __init__(
        self, stitcher: RemuxStitcher, check: ChunkCheck, film: Path, output: Path
    ) -> None:
        self._stitcher = stitcher
        self._check = check
        self._film = film
        self._output = output
        self._writer: FilmWriter | None = None
        self._figures: FilmFigures | None = None
        self._report: StitchReport | None = None
        self._started = time.monotonic()

    def append(self) -> None:
        chunk = self._check.take()
        if self._writer is None:
            self._check.plan_sound(self._stitcher._plan_sound(chunk, self._output))
            check_track(self._check.sound, self._check.total_frames or 0, chunk.fps)
            self._writer = self._stitcher._writer(chunk, self._film, self._check, chunk.reorder)
        if chunk.reorder > self._writer.reorder:
            raise NotAppendableError(f"chunk file {str(chunk.path)!r} needs all chunks at once")
        with writing(self._film):
            self._writer.append(chunk)

    @property
    def frames(self) -> int:
        return self._writer.frames if self._writer else 0

    @property
    def size(self) -> int:
        return self._writer.size if self._writer else 0

    @property
    def report(self) -> StitchReport:
        assert self._report is not None  # noqa: S101 -- see the interface
        return self._report

    def finish(self) -> None:
        """Write the end of the film and check it."""
        chunks = len(self._check.paths)
        if self._writer is None or self._check.missing:
            raise StitchInputError(f"film {str(self._output)!r}: not all {chunks} chunks came")
        with writing(self._film):
            figures = self._writer.close()
        self._figures = check_figures(figures, self._writer.frames, chunks, self._check.sound.mode)

    def published(self) -> None:
        """Note that the film has its name."""
        assert self._figures is not None  # noqa: S101 -- finished before
        seconds = time.monotonic() - self._started
        self._report = self._figures.report(self._output, len(self._check.paths), seconds)

    def abandon(self) -> None:
        """Close the film; it is not to be used."""
        if self._writer is not None:
            self._writer.abandon()
