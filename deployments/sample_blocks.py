"""Save sample blocks: one of each kind under the name `default`, and one to show a choice.

Words behind the module's name are then run as a command of `prefect`, in the same process.
"""

from __future__ import annotations

import sys

from prefect.cli import app

from prefect_renderfarm.blocks import FfmpegStitcher, LocalAdapter, RemuxStitcher
from prefect_renderfarm.blocks.runtime.prefect_api import call_sync

SAMPLES = {
    "default": (LocalAdapter(), RemuxStitcher(), FfmpegStitcher()),
    "lossless-sound": (RemuxStitcher(audio_codec="flac", faststart=True),),
}


def save_sample_blocks() -> None:
    """Save the sample blocks; leave those alone that are there, a person may have edited them."""
    for name, blocks in SAMPLES.items():
        for block in blocks:
            call_sync(type(block).register_type_and_schema)
            try:
                call_sync(type(block).load, name)
            except ValueError:
                call_sync(block.save, name)


if __name__ == "__main__":
    save_sample_blocks()
    if sys.argv[1:]:
        app()
