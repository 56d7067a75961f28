"""The table of faults: how a chunk can be wrong, and what is then said, on which level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from faulty_media import (
    COUNT,
    Spoil,
    absent,
    bytes_of,
    clip,
    copied,
    cut,
    empty_last_sample,
    flip_in_frames,
    in_header,
    in_track,
    retimed,
    tracks_swapped,
    without_key_frame,
)

PLANNED = f"{COUNT} frames planned"
NO_MEDIA = (PLANNED, "cannot be opened as a media file", "Invalid data")
OFF_GRID = ("frames off the grid of 30 frames a second", "one at 0.")
WRONG_TIMES: list[tuple[str, Callable[[int], Fraction | int], tuple[str, ...], str]] = [
    ("off the grid", lambda frame: frame + Fraction(2, 5) * (frame == 5), OFF_GRID, "mended"),
    ("doubled", lambda frame: frame - (frame == 5),
     ("two frames at one time", "grid of 30 frames a second"), "checked"),
    ("hole", lambda frame: frame + (frame >= 4),
     ("has 6 frames with a hole at frame 4", "grid of 30 frames a second"), "checked"),
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One way in which a chunk can be wrong.

    Attributes:
        name: What is wrong.
        kind: The kind of the good chunks.
        spoil: What makes a bad chunk of a good one.
        words: What the message must say: what was found, and what was expected.
        level: The lowest level of `verify` that refuses it.
        below: What becomes of it on lower levels: `checked` (the check of the finished film refuses
            it), `mended` (the film is right), `hidden` (the film is wrong; only the SHA-256 in the
            chunk's manifest can tell).
        alone: Whether the chunk is wrong by itself, even as the first one.
    """

    name: str
    kind: str
    spoil: Spoil
    words: tuple[str, ...]
    level: str = "header"
    below: str = ""
    alone: bool = False


# On `header` an mp4 or mov file is believed what its index tells, frame by frame; so is a Matroska
# file, which is read to its end. A transport stream has no index: it is believed to have the frames
# that are planned.
TABLE = [
    Fault("missing", "mp4", absent, (PLANNED, "does not exist"), alone=True),
    Fault("empty", "mp4", bytes_of(lambda _: b""), (PLANNED, "is empty"), alone=True),
    Fault("no header mp4", "mp4", bytes_of(lambda data: data[2000:]), NO_MEDIA, alone=True),
    Fault("no header mkv", "mkv", bytes_of(lambda data: data[700:]), NO_MEDIA, alone=True),
    Fault("garbage", "mp4", bytes_of(lambda _: b"\0garbage" * 500), NO_MEDIA, alone=True),
    Fault("no moov", "mp4", bytes_of(lambda data: data[: data.index(b"moov") - 4]), NO_MEDIA,
          alone=True),
    Fault("cut in mdat", "mp4", bytes_of(cut(0.7), faststart=True),
          (PLANNED, "damaged packet after "), alone=True),
    Fault("cut by one byte", "mp4", bytes_of(lambda data: data[:-1], faststart=True),
          (PLANNED, "damaged packet after "), alone=True),
    Fault("mkv cut", "mkv", bytes_of(cut(0.85)),
          (PLANNED, "frames with a hole at frame "), alone=True),
    Fault("ts cut", "ts", bytes_of(cut(0.5)),
          (PLANNED, "last transport packet has", "bytes, not 188"), alone=True),
    Fault("ts cut between packets", "ts", bytes_of(lambda data: data[: len(data) // 376 * 188]),
          (PLANNED, "frames with a hole at frame "), "packets", "checked", alone=True),
    Fault("ts cut in its last frame", "ts", bytes_of(lambda data: data[:-376]),
          (PLANNED, "has 6 frames, of which only"), "decode", "hidden"),
    Fault("size mp4", "mp4", clip(width=192), ("frame size 192x96, not 160x96",)),
    Fault("size mkv", "mkv", clip(width=192), ("frame size 192x96, not 160x96",)),
    Fault("size ts", "ts", clip(width=192), ("frame size 192x96, not 160x96",)),
    Fault("codec", "mp4", clip(codec="mpeg4"), ("codec mpeg4, not h264",)),
    Fault("profile mp4", "mp4", clip(b_frames=0), ("profile Constrained Baseline, not Main",)),
    Fault("profile ts", "ts", clip(b_frames=0), ("profile Constrained Baseline, not Main",)),
    Fault("4:2:2", "mkv", clip(pixel_format="yuv422p"), ("profile High 4:2:2, not Main",)),
    Fault("pixel format", "mjpeg in mkv", clip(codec="mjpeg", pixel_format="yuvj422p"),
          ("pixel format yuvj422p, not yuvj420p",)),
    Fault("pixel format mov", "mjpeg in mov", clip(codec="mjpeg", pixel_format="yuvj422p"),
          ("pixel format yuvj422p, not yuvj420p",)),
    Fault("no key frame", "mkv", without_key_frame, ("does not begin with a key frame",),
          alone=True),
    Fault("sample without bytes", "mp4", bytes_of(empty_last_sample),
          (PLANNED, "is cut short: 5 of the 6 frames"), alone=True),
    Fault("range mp4", "mp4", in_header(full=1), ("yuvj420p, not yuv420p",)),
    Fault("range mkv", "mpeg4 in mkv", in_track(full=1), ("range full, not limited",)),
    Fault("matrix mp4", "mp4", in_header(matrix=5), ("colour matrix 5, not 1",)),
    Fault("matrix mkv", "mpeg4 in mkv", in_track(matrix=5), ("colour matrix 5, not 1",)),
    Fault("matrix ts", "ts", in_header(matrix=5), ("colour matrix 5, not 1",)),
    Fault("primaries mp4", "mp4", in_header(primaries=5), ("primaries 5, not 1",)),
    Fault("primaries mkv", "mpeg4 in mkv", in_track(primaries=5), ("primaries 5, not 1",)),
    Fault("transfer mp4", "mp4", in_header(transfer=5), ("transfer 5, not 1",)),
    Fault("transfer mkv", "mpeg4 in mkv", in_track(transfer=5), ("transfer 5, not 1",)),
    Fault("aspect in mp4's track", "mp4", copied("-aspect", "3:1"), ("pixel aspect 9/5, not 1",)),
    Fault("aspect in mkv's track", "mkv", copied("-aspect", "3:1"), ("pixel aspect 9/5, not 1",)),
    Fault("aspect in H.264", "ts", in_header(sample_aspect_ratio="4/3"),
          ("pixel aspect 4/3, not 1",)),
    Fault("25 mp4", "mp4", clip(fps=Fraction(25)), OFF_GRID, alone=True),
    Fault("25 mkv", "mkv", retimed(lambda frame: frame * Fraction(6, 5)), OFF_GRID, alone=True),
    Fault("15", "mp4", clip(fps=Fraction(15)),
          ("with a hole at frame 1", "grid of 30 frames a second"), alone=True),
    Fault("60", "mp4", clip(fps=Fraction(60)), OFF_GRID, alone=True),
    Fault("29.97 mp4", "mp4", clip(fps=Fraction(30000, 1001)), OFF_GRID, alone=True),
    Fault("timescale", "mp4", copied("-video_track_timescale", "90000"),
          ("time base 1/90000, not 1/15360",)),
    Fault("ts for mp4", "mp4", clip(ending=".ts"), ("container mpegts, not mov,mp4",)),
    Fault("mkv for mp4", "mp4", clip(ending=".mkv"), ("container matroska,webm, not mov,mp4",)),
    Fault("short mp4", "mp4", clip(5), ("has 5 frames, not the planned 6",), alone=True),
    Fault("long mp4", "mp4", clip(7), ("has 7 frames, not the planned 6",), alone=True),
    Fault("short mkv", "mkv", clip(5), ("has 5 frames, not the planned 6",), alone=True),
    Fault("long mkv", "mkv", clip(7), ("has 7 frames, not the planned 6",), alone=True),
    Fault("short ts", "ts", clip(5), ("has 5 frames, not the planned 6",), "packets", "checked",
          alone=True),
    Fault("long ts", "ts", clip(7), ("has 7 frames, not the planned 6",), "packets", "checked",
          alone=True),
    *(Fault(f"{name} {kind}", kind, retimed(times), words, "packets" if kind == "ts" else "header",
            below if kind == "ts" else "", alone=True)
      for kind in ("mp4", "mkv", "ts")
      for name, times, words, below in WRONG_TIMES),
    Fault("bit flips", "mp4", bytes_of(flip_in_frames), (PLANNED, "decoded past frame"), "decode",
          "hidden"),
    Fault("rate", "mov", copied("-c:a", "pcm_s16le", "-ar", "44100"),
          ("audio rate 44100, not 48000",)),
    Fault("channels mov", "mov", copied("-c:a", "pcm_s16le", "-ac", "1"),
          ("audio channels 1, not 2",)),
    Fault("channels mkv", "mkv with audio", copied("-c:a", "pcm_s16le", "-ac", "1"),
          ("audio channels 1, not 2",)),
    Fault("no audio", "mov", copied("-an"), ("tracks video, not video and audio",)),
    Fault("audio of its own", "mkv", clip(audio="pcm_s16le"),
          ("tracks video and audio, not video",)),
    Fault("order of tracks", "mov", tracks_swapped,
          ("tracks audio and video, not video and audio",)),
    Fault("turned mp4", "mp4", copied(before=("-display_rotation", "90")),
          ("rotation 270 degrees, not 0 degrees",)),
    Fault("turned mkv", "mkv", copied(before=("-display_rotation", "180")),
          ("rotation 180 degrees, not 0 degrees",)),
    Fault("mirrored", "mp4", copied(before=("-display_hflip",)),
          ("180 degrees and mirrored, not 0 degrees",)),
    *(Fault(f"SPS {kind}", kind, in_header(level="5.1"), ("codec header ", ", not "))
      for kind in ("mp4", "mkv", "ts")),
]  # fmt: skip
