"""Save sample blocks: one of each kind under the name `default`, and one to show a choice."""

from __future__ import annotations

from prefect_renderfarm.blocks import FfmpegStitcher, LocalAdapter, RemuxStitcher

SAMPLES = {
    "default": (LocalAdapter(), RemuxStitcher(), FfmpegStitcher()),
    "lossless-sound": (RemuxStitcher(audio_codec="flac", faststart=True),),
}


def save_sample_blocks() -> None:
    """Save the sample blocks; leave those alone that are there, a person may have edited them."""
    for name, blocks in SAMPLES.items():
        for block in blocks:
            type(block).register_type_and_schema(_sync=True)
            try:
                type(block).load(name, _sync=True)
            except ValueError:
                block.save(name, _sync=True)


if __name__ == "__main__":
    save_sample_blocks()
