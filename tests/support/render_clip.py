"""A renderer for the tests: frames that tell their number, and ways to go wrong on purpose."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

from media_samples import Recipe, write_clip

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--fps", type=Fraction, default=Fraction(24))
    parser.add_argument("--audio")
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds to wait before")
    parser.add_argument("--wait-for", type=Path, help="wait until this file exists")
    parser.add_argument("--fail-once", type=Path, help="fail unless this file exists; make it")
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--child", type=Path, help="start a child that sleeps; write its pid here")
    parser.add_argument("--note", type=Path, help="append the first frame to this file")
    parser.add_argument("--hang-once", type=Path, help="hang unless this file exists; make it")
    options = parser.parse_args()
    print(f"rendering {options.count} frames from {options.start}", flush=True)
    if options.child:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        options.child.write_text(f"{os.getpid()} {child.pid}")
    if options.note:
        with options.note.open("a") as file:
            file.write(f"{options.start}\n")
    if options.hang_once and not options.hang_once.exists():
        options.hang_once.touch()
        time.sleep(600)
    time.sleep(options.sleep)
    while options.wait_for and not options.wait_for.exists():
        time.sleep(0.02)
    if options.fail or (options.fail_once and not options.fail_once.exists()):
        if options.fail_once:
            options.fail_once.touch()
        options.output.write_bytes(b"half a file")
        sys.exit("cannot render: asked to fail")
    recipe = Recipe(ending=options.output.suffix, fps=options.fps, audio=options.audio)
    write_clip(options.output, options.start, options.count, recipe)
