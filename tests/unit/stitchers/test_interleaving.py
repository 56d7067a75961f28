"""Audio and video of a moment lie side by side in a film, so that it plays while it loads."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from audio_samples import Take, due, write_takes, write_track

from prefect_renderfarm.blocks import RemuxStitcher


@pytest.mark.parametrize(
    "ending",
    [".mp4", ".mkv", *(pytest.param(each, marks=pytest.mark.long) for each in (".mov", ".ts"))],
)
def test_audio_lies_beside_the_video(tmp_path: Path, ending: str) -> None:
    """In a film with a track, audio and video of a moment are near each other in the file."""
    slow = Fraction(10)
    chunks = write_takes(tmp_path, Take(None, fps=slow), [300, 300])
    track = write_track(tmp_path / "track.wav", due(slow, 600), Take())
    film = tmp_path / f"film{ending}"
    RemuxStitcher(audio_track=track).stitch(chunks, film, fps=10, frame_counts=[300, 300])
    latest = {"video": 0.0, "audio": 0.0}
    with av.open(str(film)) as container:
        packets = [packet for packet in container.demux() if packet.size and packet.pts is not None]
        # Not every demuxer gives packets in the order of the file.
        for packet in sorted(packets, key=lambda packet: packet.pos or 0):
            latest[packet.stream.type] = float(packet.pts * packet.time_base)
            assert abs(latest["video"] - latest["audio"]) < 2.5
    assert min(latest.values()) > 59
