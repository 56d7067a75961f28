"""Render a frame range of a Julia-set morph with sound, in time proportional to the range.

    python julia.py --start 0 --count 30 --total 240 --fps 24 --output chunk.mov

The constant of the Julia set swings along an arc near the boundary of the Mandelbrot set while the
picture turns once, so the last frame leads to the first. Every frame and every sample depends on
its number alone: any cut of the film into ranges gives the same film.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, SCALE = 1280, 720, 2
ITERATIONS = 90
RATE = 48_000
CHORD = (110.0, 164.81, 220.0, 277.18, 329.63, 440.0)  # A major, in Hz


def picture(number: int, total: int) -> NDArray[Any]:
    """Return frame `number` of `total` as 8-bit RGB, on a grid of 1/SCALE."""
    turn = number / total
    width, height = WIDTH // SCALE, HEIGHT // SCALE
    zoom = 1.25 - 0.2 * np.cos(2 * np.pi * turn)
    x = np.linspace(-zoom * width / height, zoom * width / height, width, dtype=np.float32)
    y = np.linspace(-zoom, zoom, height, dtype=np.float32)
    plane = (x[None, :] + 1j * y[:, None]) * np.exp(2j * np.pi * turn)
    z = plane.astype(np.complex64).ravel()
    angle = 0.46 + 0.17 * np.sin(2 * np.pi * turn)
    constant = np.complex64(0.7885 * np.exp(2j * np.pi * angle))
    times = np.full(z.size, 1.0, dtype=np.float32)  # how soon each point escapes: 0 … 1
    alive = np.arange(z.size)
    for step in range(ITERATIONS):
        z = z * z + constant
        size = z.real**2 + z.imag**2
        gone = size > 64
        smooth = step + 1 - np.log2(np.log2(size[gone]) / 6)
        times[alive[gone]] = np.clip(smooth / ITERATIONS, 0, 1)
        z, alive = z[~gone], alive[~gone]
    depth = np.sqrt(times.reshape(height, width))
    phase = np.array([0.0, 0.12, 0.25])
    light = 0.5 - 0.5 * np.cos(2 * np.pi * (1.4 * depth[..., None] + phase + turn))
    glow = np.clip(depth * 1.8, 0, 1)[..., None]
    rgb: NDArray[Any] = (255 * np.clip(light * glow, 0, 1)).astype(np.uint8)
    return rgb


def sound(first: int, last: int, length: int) -> NDArray[Any]:
    """Return samples `first` … `last` - 1 of `length` as 16-bit stereo: a chord that breathes."""
    t = np.arange(first, last) / RATE
    turn = np.arange(first, last) / length
    left, right = np.zeros(t.size), np.zeros(t.size)
    for place, pitch in enumerate(CHORD):
        swell = 0.5 - 0.5 * np.cos(2 * np.pi * ((place % 3 + 1) * turn + place / len(CHORD)))
        tone = swell * np.sin(2 * np.pi * pitch * t) / (place + 2)
        pan = (place + 0.5) / len(CHORD)
        left, right = left + tone * (1 - pan), right + tone * pan
    fade = np.clip(np.minimum(turn, 1 - turn) * 20, 0, 1)
    samples: NDArray[Any] = (np.stack([left, right]) * fade * 20_000).astype(np.int16)
    return samples


def render(start: int, count: int, total: int, fps: Fraction, output: Path) -> None:
    """Write frames `start` … `start + count` - 1 with their sound, H.264 and PCM."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(output), "w") as film:
        video = film.add_stream("libx264", rate=fps)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.options = {"preset": "veryfast", "crf": "18"}
        audio = film.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        begin = round(start * RATE / fps)
        for number in range(start, start + count):
            frame = av.VideoFrame.from_ndarray(picture(number, total), format="rgb24").reformat(
                WIDTH, HEIGHT, "yuv420p", interpolation="BICUBIC"
            )
            frame.pts, frame.time_base = number - start, 1 / fps
            film.mux(video.encode(frame))
            first, last = round(number * RATE / fps), round((number + 1) * RATE / fps)
            wave = sound(first, last, round(total * RATE / fps))
            samples = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(wave.T).reshape(1, -1), format="s16", layout="stereo"
            )
            samples.sample_rate, samples.pts = RATE, first - begin
            samples.time_base = Fraction(1, RATE)
            film.mux(audio.encode(samples))
        film.mux(video.encode(None))
        film.mux(audio.encode(None))
    print(f"frames {start}-{start + count - 1} written to {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=int, required=True, help="first frame")
    parser.add_argument("--count", type=int, required=True, help="number of frames")
    parser.add_argument("--total", type=int, required=True, help="frames of the whole film")
    parser.add_argument("--fps", type=Fraction, required=True, help="frames a second")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    render(**vars(parser.parse_args()))
