"""The exact limits of a job spec: the last value that is taken, the first that is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from job_samples import HELIOS, changed, refusal, set_chunk

from prefect_renderfarm.flows import RenderJob
from prefect_renderfarm.flows.jobs import spec
from prefect_renderfarm.flows.jobs.spec import (
    MOST_BYTES,
    MOST_NUMBER,
    MOST_PARTS,
    check_each,
    is_key,
    parse_spec,
    require_size,
)

Change = Callable[[dict[str, Any]], None]


def made(change: Change) -> RenderJob:
    """Return the Helios job with a change."""
    return RenderJob.model_validate(changed(change))


def files(*names: str) -> Change:
    """Return a change of the chunks' files."""

    def change(data: dict[str, Any]) -> None:
        for chunk, name in zip(data["chunks"], names, strict=False):
            chunk["outputFile"] = name

    return change


def one_chunk(start: int, count: int) -> RenderJob:
    """Return a job of one chunk."""
    chunk = HELIOS["chunks"][0] | {"startFrame": start, "frameCount": count}  # type: ignore[index]
    return RenderJob.model_validate(
        {"metadata": {"totalFrames": count, "fps": 24}, "chunks": [chunk]}
    )


@pytest.mark.parametrize(
    ("taken", "refused", "words"),
    [
        (set_chunk(1, outputFile="x" * 200), set_chunk(1, outputFile="x" * 201), "200 bytes"),
        (set_chunk(1, outputFile="é" * 100), set_chunk(1, outputFile="é" * 101), "200 bytes"),
        (set_chunk(1, outputFile="😀" * 50), set_chunk(1, outputFile="😀" * 51), "200 bytes"),
        (
            set_chunk(1, outputFile="a/" * 449 + "bb"),
            set_chunk(1, outputFile="a/" * 449 + "bbb"),
            "900 bytes",
        ),
        (
            lambda data: data.update(id="x" * 255),
            lambda data: data.update(id="x" * 256),
            "255 characters",
        ),
        (
            lambda data: data.update(assetsUrl="x" * 8_000),
            lambda data: data.update(assetsUrl="x" * 8_001),
            "8,000 characters",
        ),
        (
            lambda data: data["metadata"].update(width=MOST_NUMBER),
            lambda data: data["metadata"].update(width=MOST_NUMBER + 1),
            "the largest number is",
        ),
        (
            lambda data: data["metadata"].update(duration=0),
            lambda data: data["metadata"].update(duration=float("inf")),
            "duration is inf",
        ),
        (
            lambda data: data["metadata"].update(duration=2.5),
            lambda data: data["metadata"].update(duration="2.5"),
            "duration is '2.5'",
        ),
        (
            lambda data: data["metadata"].update(width=1),
            lambda data: data["metadata"].update(width=0),
            "width is 0",
        ),
        (
            set_chunk(0, frameCount=30.0),
            set_chunk(0, frameCount=30.5),
            "frameCount is 30.5",
        ),
    ],
)
def test_last_and_first(taken: Change, refused: Change, words: str) -> None:
    """A value at the limit is taken, the next one is refused."""
    assert len(made(taken).chunks) == 3
    assert words in refusal(lambda: made(refused))


def test_frames_at_the_ends_of_whole_numbers() -> None:
    """Ranges may begin at the smallest frame number and end at the largest, not beyond."""
    assert one_chunk(-MOST_NUMBER, 5).chunks[0].end_frame == 5 - MOST_NUMBER
    assert one_chunk(MOST_NUMBER - 5, 5).chunks[0].end_frame == MOST_NUMBER
    assert "ends at frame" in refusal(lambda: one_chunk(MOST_NUMBER - 4, 5))
    assert "the largest number is" in refusal(lambda: one_chunk(-MOST_NUMBER - 1, 5))


@pytest.mark.parametrize("total", [89, 91])
def test_chunks_make_up_the_film(total: int) -> None:
    """The chunks have neither fewer nor more frames than the film; the last chunk is named."""
    message = refusal(lambda: made(lambda data: data["metadata"].update(totalFrames=total)))
    assert "the chunks have 90 frames" in message
    assert f"chunk 2, must end at frame {total}" in message


def test_ranges_may_begin_anywhere() -> None:
    """A film may begin at any frame number, such as 1."""
    assert one_chunk(1, 10).chunks[0].start_frame == 1


@pytest.mark.parametrize("start", [29, 31])
def test_a_range_names_its_neighbour(start: int) -> None:
    """A gap or an overlap names both chunks."""
    message = refusal(lambda: made(set_chunk(1, startFrame=start)))
    assert "chunk 1" in message
    assert "chunk 0" in message
    assert f"starts at frame {start}, not 30" in message


def test_a_chunk_may_have_one_frame() -> None:
    """A chunk of one frame is the shortest."""
    assert one_chunk(7, 1).chunks[0].end_frame == 8
    assert "it must be 1 or more" in refusal(lambda: made(set_chunk(1, frameCount=0)))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a", "a/b"), "chunk 0 has outputFile 'a', which is also a folder, because chunk 1 has"),
        (("a/b", "a"), "chunk 1 has outputFile 'a', which is also a folder, because chunk 0 has"),
        (("a/b/c", "a"), "because chunk 0 has outputFile 'a/b/c': a file cannot be in another"),
        (("a", "./a"), "chunk 1 and chunk 0 write the same outputFile './a': give each its own"),
        (("a", "A"), "chunk 1 has outputFile 'A', and chunk 0 has outputFile 'a', which some"),
    ],
)
def test_both_files_are_named(names: tuple[str, str], words: str) -> None:
    """Two files that are in each other's way are both named, with their chunks."""
    assert words in refusal(lambda: made(files(*names)))


def test_ids_count_from_zero() -> None:
    """Chunk 0 is a chunk, chunk -1 is none."""
    assert made(lambda data: None).chunks[0].id == 0
    assert "negative id" in refusal(lambda: made(set_chunk(0, id=-1)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("STRASSE.mp4", "straße.mp4"),
        ("a\u200cb.mp4", "ab.mp4"),
        ("a\u200db.mp4", "a\u200cb.mp4"),
        ("a./b.mp4", "a/b.mp4"),
        ("a /b.mp4", "a/b.mp4"),
        ("b.mp4.", "b.mp4"),
        ("b.mp4 ", "b.mp4"),
    ],
)
def test_one_file_for_some_file_system(first: str, second: str) -> None:
    """Names that differ in letters only, that some file system ignores, are refused together."""
    assert "take for the same" in refusal(lambda: made(files(first, second)))


def test_names_of_dots_and_spaces_stay_names() -> None:
    """A name that has nothing but dots and spaces is itself, and not the folder above it."""
    names = ("...", ". .", "a/.../b.mp4")
    assert tuple(chunk.output_file for chunk in made(files(*names)).chunks) == names
    assert "write the same outputFile" in refusal(lambda: made(files("...", "...")))


@pytest.mark.parametrize("character", ["\u200c", "\u200d"])
def test_joiners_are_letters(character: str) -> None:
    """The joiners of Persian and Hindi may be in a file, a name and a URL."""
    text = f"क{character}ष"
    job = made(lambda data: data.update(id=text, assetsUrl=text))
    assert (job.id, job.assets_url) == (text, text)
    assert made(set_chunk(1, outputFile=text)).chunks[1].output_file == text


@pytest.mark.parametrize("character", ["\n", "\x7f", "\u2028", "\u2029", "\u202e", "\ufeff"])
@pytest.mark.parametrize("field", ["id", "assetsUrl"])
def test_names_and_urls_are_plain(field: str, character: str) -> None:
    """Characters that are not seen, or change what is seen, are refused by their number."""
    message = refusal(lambda: made(lambda data: data.update({field: f"a{character}b"})))
    assert f"U+{ord(character):04X}" in message


@pytest.mark.parametrize("field", ["id", "assetsUrl", "audioTrack", "mergeCommand"])
@pytest.mark.parametrize("empty", ["", None])
def test_empty_is_none(field: str, empty: str | None) -> None:
    """An empty text means that there is none."""
    job = made(lambda data: data.update({field: empty}))
    assert field not in json.loads(job.to_json())


def test_a_name_of_spaces_is_none() -> None:
    """A job whose name is only spaces has none, and is called by its key."""
    job = made(lambda data: data.update(id="  "))
    assert job.id is None
    assert job.title == job.key
    assert job.key.startswith("job-")


def test_title_is_the_name() -> None:
    """A job with a name is called by it."""
    assert made(lambda data: data.update(id="Film 1")).title == "Film 1"


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("Film 1!", "film-1-"),
        ("--a--", "a-"),
        ("日本語", "job-"),
        ("x" * 60, "x" * 40 + "-"),
        ("../..", "job-"),
    ],
)
def test_key_is_a_safe_name(name: str, start: str) -> None:
    """A key is letters, digits and hyphens, from the name and twelve digits of the hash."""
    key = made(lambda data: data.update(id=name)).key
    assert key.startswith(start)
    assert len(key) == len(start) + 12
    assert is_key(key)


@pytest.mark.parametrize(
    "change",
    [
        set_chunk(1, command="other"),
        lambda data: data["metadata"].update(fps=25),
        lambda data: data.update(assetsUrl="in"),
        lambda data: data.update(audioTrack="a.wav"),
        lambda data: data.update(mergeCommand="other"),
    ],
)
def test_key_depends_on_the_whole_spec(change: Change) -> None:
    """Another value anywhere is another job, though its name is the same."""
    assert made(change).key != made(lambda data: None).key


@pytest.mark.parametrize(
    "text", ["film", "film-123", "film-1a2b3c4d5e6", "film-1a2b3c4d5e6f7", "a/b-1a2b3c4d5e6f",
             "..-1a2b3c4d5e6f", "Film-1a2b3c4d5e6f", "film-1A2B3C4D5E6F", "-film\n-1a2b3c4d5e6f",
             "film-1a2b3c4d5e6f/x", "1a2b3c4d5e6f"],
)  # fmt: skip
def test_what_is_no_key(text: str) -> None:
    """Nothing else passes for a key, which is the name of a folder."""
    assert not is_key(text)
    assert is_key("film-1-1a2b3c4d5e6f")


def test_size_of_a_spec() -> None:
    """A spec may have the largest size, and not a byte more."""
    require_size(MOST_BYTES, "job")
    assert "100,000,000 bytes" in refusal(lambda: require_size(MOST_BYTES + 1, "job"))
    assert "100,000,000 bytes" in refusal(lambda: parse_spec(" " * (MOST_BYTES + 1)))


@pytest.mark.parametrize("mark", [",", "[", "{"])
def test_parts_of_a_spec(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas and opening brackets of each kind are counted, wherever they are."""
    monkeypatch.setattr(spec, "MOST_PARTS", 9)
    assert parse_spec('"' + mark * 9 + '"') == mark * 9
    assert "10 commas and brackets" in refusal(lambda: parse_spec('"' + mark * 10 + '"'))
    assert MOST_PARTS == 5_000_000


def test_digits_of_a_number() -> None:
    """A number may have 100 digits, and not 101."""
    assert parse_spec("9" * 100) == 10**100 - 1
    assert "101 digits" in refusal(lambda: parse_spec("9" * 101))


@pytest.mark.parametrize("text", ['{"b": 1, "a": 1, "b": 2}', '[{"x": {"b": 1, "b": 1}}]'])
def test_the_key_that_is_there_twice(text: str) -> None:
    """The key that is there twice is named."""
    assert "key 'b' is there twice" in refusal(lambda: parse_spec(text))


def test_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job may have 500,000 chunks; more are refused before they are looked at."""
    chunks: list[Any] = [None] * 500_001
    data = {"metadata": {"totalFrames": 1, "fps": 1}, "chunks": chunks}
    assert "500,001 chunks" in refusal(lambda: RenderJob.model_validate(data))
    assert "500,000 are the most" in refusal(lambda: RenderJob.model_validate(data))
    chunks.pop()
    assert "chunk at place 0" in refusal(lambda: RenderJob.model_validate(data))


def test_the_size_that_is_written_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec given as data is refused if others could not read it once it is written."""
    size = len(made(lambda data: None).to_json())
    monkeypatch.setattr(spec, "MOST_BYTES", size)
    assert made(lambda data: None)
    monkeypatch.setattr(spec, "MOST_BYTES", size - 1)
    assert f"more than {size - 1:,} bytes" in refusal(lambda: made(lambda data: None))


def test_faults_are_counted() -> None:
    """The first fault is told, with the number of the others."""
    message = refusal(lambda: made(lambda data: data["metadata"].update(width=0, height=0)))
    assert "metadata.width is 0" in message
    assert message.endswith("(and 1 more)")
    assert "more)" not in refusal(lambda: made(lambda data: data["metadata"].update(width=0)))


def test_a_fault_has_no_line_end() -> None:
    """A reason of several lines is one line in the message."""
    message = refusal(lambda: made(lambda data: data["metadata"].update({"a\nb": 1}, fps="\n1/0")))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "start"),
    [
        (set_chunk(1, id="x", startFrame="y"), "chunk 'x': id is 'x'"),
        (lambda data: data["chunks"].insert(1, 3), "chunk at place 1 of the list: "),
        (lambda data: data["chunks"][1].pop("id"), "chunk at place 1 of the list: id is missing"),
        (lambda data: data.update(chunks={"a": 1}), "job spec: chunks is an object"),
        (lambda data: data.update(metadata=[1]), "job spec: metadata is a list"),
    ],
)
def test_faults_have_a_place(change: Change, start: str) -> None:
    """A fault is told with the chunk's id, or its place in the list, or the field."""
    assert refusal(lambda: made(change)).startswith(start)


def test_a_signed_url_is_not_shown() -> None:
    """A URL in a message has no query, in which a presigned one has its secret."""
    url = "https://h/a.zip?s3cret\n"
    message = refusal(lambda: made(lambda data: data.update(assetsUrl=url)))
    assert "s3cret" not in message
    assert "https://h/a.zip" in message


def test_other_keys_are_ignored() -> None:
    """A key that this version does not know changes nothing."""
    job = made(lambda data: data.update(colour="red") or data["chunks"][0].update(note=1))
    assert job == made(lambda data: None)


@pytest.mark.parametrize(
    ("name", "alias"), [("start_frame", "startFrame"), ("output_file", "outputFile")]
)
def test_a_field_has_one_spelling(name: str, alias: str) -> None:
    """A field in both spellings is refused, though both have one value."""

    def change(data: dict[str, Any]) -> None:
        data["chunks"][1][name] = data["chunks"][1][alias]

    assert f"{alias} is there as {name}, too" in refusal(lambda: made(change))


def test_jobs_do_not_change() -> None:
    """A checked job cannot be changed, and neither can its chunks."""
    job = made(lambda data: None)
    with pytest.raises(ValueError, match="frozen"):
        job.id = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        job.chunks[0].command = "other"  # type: ignore[misc]


def test_the_audio_track_is_checked_alone() -> None:
    """A job's audio track is a file of the job, whatever its chunks are."""
    chunks = made(lambda data: None).chunks
    check_each(chunks, "audio.wav")
    assert "audioTrack" in refusal(lambda: check_each(chunks, "../audio.wav"))
    assert "audioTrack" in refusal(lambda: check_each(chunks, chunks[0].output_file))
    assert made(lambda data: data.update(audioTrack="a.wav")).audio_track == "a.wav"


def test_a_large_object_with_a_key_twice() -> None:
    """The time to find the key that is twice grows with their number, and not with its square."""
    keys = ",".join(f'"{number}":1' for number in range(200_000))
    began = time.monotonic()
    assert "key '199999' is there twice" in refusal(lambda: parse_spec(f'{{{keys},"199999":2}}'))
    assert time.monotonic() - began < 5
