"""Every video encoder of FFmpeg, in every container: films are right, or refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from encoder_samples import FPS, FRAMES, Seen, picture_hashes, pictures, run_ffmpeg, seen

from prefect_renderfarm.blocks import FfmpegStitcher, RemuxStitcher, RenderFarmError

_PLAIN = """
asv1 cfhd cinepak dpx ffv1 ffvhuff flashsv flv gif h263p hap huffyuv jpeg2000 jpegls libvpx libxvid
libtheora magicyuv mjpeg mpeg1video mpeg2video mpeg4 msmpeg4v2 png prores_ks qtrle r210 rawvideo sgi
snow speedhq svq1 targa tiff utvideo v210 v308 v408 vc2 wmv2 y41p yuv4 zlib zmbv
"""
# Options beside the encoder's name, where the defaults are slow, or take no picture of this size.
ENCODERS = dict.fromkeys(_PLAIN.split(), "") | {
    "libx264": "-preset ultrafast",
    "libx265": "-preset ultrafast -x265-params log-level=0",
    "libvpx-vp9": "-deadline realtime -cpu-used 8",
    "libsvtav1": "-preset 13",
    "libaom-av1": "-cpu-used 8 -usage realtime",
    "dvvideo": "-s 720x576 -pix_fmt yuv420p",
    "dnxhd": "-s 1920x1080 -b:v 120M -pix_fmt yuv422p",
}
CHUNKS = (".mp4", ".mov", ".mkv", ".avi", ".ts")
FILMS = (".mp4", ".mov", ".mkv", ".ts")


def told(path: Path) -> Seen:
    """Return what a film must have of its chunks, whatever the containers."""
    found = seen(path)
    return replace(found, tag="", fields=max(found.fields, 1), colours=(0, 0, 0), alpha=False)


@pytest.mark.long
@pytest.mark.parametrize("encoder", ENCODERS)
def test_sweep(encoder: str, tmp_path: Path) -> None:
    """No film differs from its chunks, and none is refused without a reason."""
    options = ["-c:v", encoder, *ENCODERS[encoder].split()]
    made = 0
    for ending in CHUNKS:
        chunks = [tmp_path / f"{number}{ending}" for number in range(2)]
        try:
            for number, chunk in enumerate(chunks):
                run_ffmpeg(*pictures(number * FRAMES, "setsar=4/3"), *options, chunk)
        except AssertionError:
            continue  # FFmpeg has no such encoder, or the container no place for it
        for film_ending in FILMS:
            for make in (RemuxStitcher, FfmpegStitcher):
                film = tmp_path / f"film{film_ending}"
                name = f"{encoder}{ending} → {film_ending}, {make.__name__}"
                try:
                    make().stitch(chunks, film, fps=FPS, frame_counts=[FRAMES] * 2)
                except RenderFarmError as error:
                    assert not film.exists()
                    print(f"{name}: refused: {str(error).replace(str(tmp_path), '')}")
                    continue
                made += 1
                print(f"{name}: right")
                expected = [each for chunk in chunks for each in picture_hashes(chunk)]
                assert picture_hashes(film) == expected, name
                assert told(film) == told(chunks[0]), name
                film.unlink()
    print(f"{encoder}: {made} films")
