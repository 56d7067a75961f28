"""Change one place of a module at a time, and see whether a unit test notices: `make mutation`.

    make mutation                               the modules that carry guarantees
    make mutation MODULES="flows/jobs/checks.py"

mutmut does the work, in `.mutation/`, where the packages lie as they are imported, with the
module's own unit tests. Changes of a message alone (a text with a space in it) that no test
notices are counted apart: messages are not tested word by word. Ends with 1 if fewer than 90 % of
the other changes are noticed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".mutation"
# Each with its own tests: a change that only a whole film shows has none.
MODULES = {
    "blocks/stitchers/film_check.py": (
        "stitchers/test_film_check.py",
        "stitchers/test_growing_file.py",
    ),
    "blocks/stitchers/checked.py": (
        "stitchers/test_checked.py",
        "stitchers/test_film_head.py",
        "stitchers/test_chunk_check.py",
        "stitchers/test_mismatch.py",
        "stitchers/test_film_check.py",
    ),
    "blocks/stitchers/audio.py": (
        "stitchers/test_audio_plan.py",
        "stitchers/test_written_audio.py",
        "stitchers/test_audio.py",
    ),
    "blocks/stitchers/film_content.py": (
        "stitchers/test_film_content.py",
        "stitchers/test_film_parts.py",
    ),
    "blocks/stitchers/colours.py": ("stitchers/test_colours.py",),
    "blocks/media/codec_header.py": ("media/test_codec_header.py",),
    "blocks/media/frame_grid.py": ("media/test_frame_grid.py",),
    "blocks/media/model.py": (
        "media/test_signature.py",
        "media/test_labels.py",
        "stitchers/test_mismatch.py",
    ),
    "blocks/storage/atomic_file.py": ("storage/test_atomic_file.py",),
    "blocks/processes/masking.py": ("processes/test_masking.py",),
    "blocks/processes/programs.py": (
        "processes/test_programs.py",
        "processes/test_allowed_programs.py",
    ),
    "blocks/http/url_rules.py": ("http/test_url_rules.py",),
    "blocks/runtime/repeat.py": ("runtime",),
    "flows/jobs/checks.py": ("jobs/test_hostile_paths.py", "jobs/test_spec.py"),
    "flows/state/identity.py": ("state/test_identity.py",),
    "flows/state/job_lock.py": ("state/test_job_lock.py", "state/test_lock_words.py"),
}
LEAST = 0.9
# Tests of what is not in the modules' own process, or of this repository's files.
LEFT_OUT = "not many_chunks and not shell and not larger and not wheel and not make_commands"
_MESSAGE = re.compile(r"""[rbfu]*("[^"]* [^"]*"|'[^']* [^']*')""")
_NOTICED = ("killed", "timeout", "suspicious", "segfault", "caught by type check")


def prepare(module: str) -> None:
    """Lay out the packages and a module's tests for mutmut."""
    tests = MODULES.get(module, (Path(module).parent.name,))
    shutil.rmtree(WORK, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("blocks", "flows", "deployments"):
        shutil.copytree(ROOT / name, WORK / "src" / "prefect_renderfarm" / name, ignore=ignored)
    shutil.copytree(ROOT / "tests", WORK / "tests", ignore=ignored)
    settings = {
        "source_paths": ["src/"],
        "only_mutate": [f"src/prefect_renderfarm/{module}"],
        "pytest_add_cli_args_test_selection": [f"tests/unit/{name}" for name in tests],
        "pytest_add_cli_args": [
            "-p",
            "reading_here",
            "-p",
            "no:xdist",
            "-m",
            "not long",
            "-k",
            LEFT_OUT,
        ],
        "process_isolation": "forkserver",
        "timeout_multiplier": 4,
        "timeout_constant": 5,
    }
    lines = ["[tool.mutmut]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pytest = text[text.index("[tool.pytest.ini_options]") :]
    (WORK / "pyproject.toml").write_text("\n".join([*lines, "", pytest]), encoding="utf-8")


def mutmut(*words: str) -> str:
    """Run a command of mutmut and return what it prints."""
    command = [sys.executable, "-m", "mutmut", *words]
    done = subprocess.run(command, cwd=WORK, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def changed_lines(mutant: str) -> tuple[str, str]:
    """Return what a mutant changes, before and after."""
    lines = mutmut("show", mutant).splitlines()
    before, after = (
        " ".join(line[1:].strip() for line in lines if re.match(rf"\{sign}(?!\{sign})", line))
        for sign in "-+"
    )
    return before, after


def changes_a_message(before: str, after: str) -> bool:
    """Return whether two lines differ by a message only."""
    return _MESSAGE.sub("''", before) == _MESSAGE.sub("''", after)


def survey(module: str) -> tuple[int, int, int]:
    """Run the mutants of a module; return how many are noticed, all that count, and messages."""
    prepare(module)
    with (WORK / "run.log").open("w") as log:
        command = [sys.executable, "-m", "mutmut", "run"]
        own = os.environ | {"PYTHONPATH": str(WORK / "tests" / "support")}
        if subprocess.run(
            command, cwd=WORK, stdout=log, stderr=log, check=False, env=own
        ).returncode:
            raise SystemExit(f"mutmut failed on {module}: see {WORK / 'run.log'}")
    noticed = total = messages = 0
    found = re.findall(r"^\s*(\S+): ([\w ]+)$", mutmut("results", "--all", "true"), re.MULTILINE)
    for mutant, result in found:
        if result in _NOTICED:
            noticed, total = noticed + 1, total + 1
            continue
        before, after = changed_lines(mutant)
        if changes_a_message(before, after):
            messages += 1
            continue
        total += 1
        print(f"{result}: {mutant}\n  - {before}\n  + {after}")
    print(f"{module:40} {noticed:4} of {total:4}, {messages} messages", flush=True)
    return noticed, total, messages


def main() -> None:
    """Run all, print what was not noticed, and say whether that is too much."""
    modules = sys.argv[1:] or list(MODULES)
    if missing := [name for name in modules if not (ROOT / name).is_file()]:
        raise SystemExit(f"no such modules: {', '.join(missing)}; see MODULES in {__file__}")
    counts = [survey(module) for module in modules]
    noticed, total, messages = (sum(values) for values in zip(*counts, strict=True))
    print(
        f"{noticed / total:.1%} of {total} changes noticed; {messages} changes of messages were not"
    )
    sys.exit(noticed / total < LEAST)


if __name__ == "__main__":
    main()
