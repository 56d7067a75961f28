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
from prefect_renderfarm.blocks.stitchers.base import GrowingFilm, StitchReport, progress_report
from prefect_renderfarm.blocks.stitchers.checked import CheckedStitcher
from prefect_renderfarm.blocks.stitchers.chunk_check import ChunkCheck
from prefect_renderfarm.blocks.stitchers.film_check import FilmFigures, check_figures
from prefect_renderfarm.blocks.stitchers.muxer import FilmMuxer, FilmOptions, writing
from prefect_renderfarm.blocks.storage.atomic_file import publishing


class RemuxStitcher(CheckedStitcher):
    """Copy the chunks' video packets into one film, bit for bit, each frame exactly on its time.

    Nothing is decoded or encoded, except audio if `audio` says so. Chunks must come from the same
    encoder with the same settings; others are refused.

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
        """Begin a film to which chunks are appended. See `VideoStitcher`."""
        output = Path(output).absolute()
        self.check_output(output, inputs)
        return self._growing(ChunkCheck(inputs, output, fps, frame_counts, self.verify))

    @contextmanager
    def _growing(self, check: ChunkCheck) -> Iterator[GrowingFilm]:
        with publishing(check.output) as temporary:
            film = _RemuxedFilm(self, check, temporary)
            try:
                yield film
                film.finish()
            except BaseException:
                film.abandon()
                raise
        film.published()

    def _assemble(self, chunks: Sequence[Media], film: Path, check: ChunkCheck) -> FilmFigures:
        report = progress_report()
        muxer = self._muxer(chunks[0], film, check, max(chunk.reorder for chunk in chunks))
        try:
            with writing(film):
                for chunk in chunks:
                    muxer.append(chunk)
                    report(muxer.frames, muxer.size)
                figures = muxer.close()
        except BaseException:
            muxer.abandon()
            raise
        return check_figures(figures, muxer.frames, len(chunks), check.audio.mode)

    def _muxer(self, first: Media, film: Path, check: ChunkCheck, reorder: int) -> FilmMuxer:
        options = FilmOptions(self.audio_codec, self.audio_bitrate, self.faststart)
        return FilmMuxer(film, first, check.audio, options, reorder, check.total_frames)


class _RemuxedFilm(GrowingFilm):
    def __init__(self, stitcher: RemuxStitcher, check: ChunkCheck, film: Path) -> None:
        self._stitcher = stitcher
        self._check = check
        self._film = film
        self._muxer: FilmMuxer | None = None
        self._figures: FilmFigures | None = None
        self._report: StitchReport | None = None
        self._started = time.monotonic()

    def append(self) -> None:
        chunk = self._check.take()
        if self._muxer is None:
            self._check.plan_audio(self._stitcher._plan_audio(chunk, self._check.output))
            check_track(self._check.audio, self._check.total_frames or 0, chunk.fps)
            self._muxer = self._stitcher._muxer(chunk, self._film, self._check, chunk.reorder)
        if chunk.reorder > self._muxer.reorder:
            raise NotAppendableError(
                f"chunk file {str(chunk.path)!r} has more B-frames in a row than the film so far"
            )
        with writing(self._film):
            self._muxer.append(chunk)

    @property
    def frames(self) -> int:
        return self._muxer.frames if self._muxer else 0

    @property
    def size(self) -> int:
        return self._muxer.size if self._muxer else 0

    @property
    def report(self) -> StitchReport:
        assert self._report is not None  # noqa: S101 -- see the interface
        return self._report

    def finish(self) -> None:
        """Write the end of the film and check it."""
        chunks = len(self._check.paths)
        if self._muxer is None or self._check.missing:
            raise StitchInputError(
                f"film {str(self._check.output)!r}: {self._check.missing} of {chunks} chunks were "
                "not appended"
            )
        with writing(self._film):
            figures = self._muxer.close()
        self._figures = check_figures(figures, self._muxer.frames, chunks, self._check.audio.mode)

    def published(self) -> None:
        """Make the report, now that the film has its name."""
        assert self._figures is not None  # noqa: S101 -- finished before
        seconds = time.monotonic() - self._started
        self._report = self._figures.report(self._check.output, len(self._check.paths), seconds)

    def abandon(self) -> None:
        """Close the film; it is not to be used."""
        if self._muxer is not None:
            self._muxer.abandon()
