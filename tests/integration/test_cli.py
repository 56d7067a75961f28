"""The command `renderfarm`, as a person types it, against a real farm."""

from __future__ import annotations

import json
import os
import pty
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from farm_client import FarmClient
from jobs import clip_command, save_job, small_job, with_commands
from media_samples import frame_hashes
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from pydantic import SecretStr
from storage_samples import S3Server

from prefect_renderfarm.deployments import FILES
from prefect_renderfarm.deployments.cli import Refused, app
from prefect_renderfarm.flows import RenderJob

RENDERFARM = [sys.executable, "-m", "prefect_renderfarm.deployments.cli"]


def renderfarm(api: FarmClient, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, without a terminal."""
    return subprocess.run(
        [*RENDERFARM, *words], cwd=folder, env=api.farm.environment(), capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip


def test_plan_and_render(api: FarmClient, tmp_path: Path) -> None:
    """From a command template to the film, with relative paths; then what there is of it."""
    words = shlex.split(clip_command())
    plan = ["plan", "-o", "film.json", "--frames", "18", "--fps", "24", "--chunks", "3"]
    done = renderfarm(api, tmp_path, *plan, "--", *words)
    assert done.stdout == "film.json: 3 chunks, 18 frames at 24 a second\n", done.stderr
    done = renderfarm(api, tmp_path, "render", "film.json", "-o", "film.mp4", "--set", "retries=1")
    assert done.returncode == 0, done.stdout + done.stderr
    film = tmp_path / "film.mp4"
    assert done.stdout.splitlines()[-1].startswith(f"film: {film} (18 frames, 0.8 s, ")
    assert len(frame_hashes(film)) == 18
    shown = renderfarm(api, tmp_path, "show", "film.json").stdout.splitlines()
    assert shown[1].startswith("chunks: 3 of 3 done, 18 of 18 frames, ")
    assert shown[2] == f"films: {film}"
    assert any(line.startswith("Completed ") and "render film  film: " in line for line in shown)


@pytest.mark.long
def test_check_assemble_list(api: FarmClient, tmp_path: Path) -> None:
    """A job is checked without a run; its chunks are assembled again; runs are listed."""
    save_job(tmp_path, small_job(), "film.json")
    short = ["--stitcher", "remux", "--adapter", "local"]
    checked = renderfarm(api, tmp_path, "check", "film.json", "-o", "film.mp4", *short)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout == "right: 3 chunks, 18 frames\n"
    done = renderfarm(api, tmp_path, "render", "film.json", "-o", "film.mp4", *short)
    assert done.returncode == 0, done.stdout + done.stderr
    film = tmp_path / "film.mp4"
    film.unlink()
    again = renderfarm(api, tmp_path, "assemble", "film.json", "-o", "film.mp4", "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["state"] == "COMPLETED"
    assert len(frame_hashes(film)) == 18
    nothing = renderfarm(api, tmp_path, "assemble", "film.json")
    assert (nothing.returncode, nothing.stderr) == (1, "renderfarm: no film: name it with -o\n")
    listed = renderfarm(api, tmp_path, "jobs", "--json").stdout.splitlines()
    assert any(str(film) in json.loads(line)["message"] for line in listed)


@pytest.mark.long
def test_with_a_storage(api: FarmClient, s3: S3Server, tmp_path: Path) -> None:
    """A job whose chunks are in a storage is shown and assembled by its key, and cleaned away."""
    save_job(tmp_path, job := small_job())
    s3.new_bucket().save("cli", overwrite=True)
    storage = ["--storage", "s3-bucket/cli"]
    done = renderfarm(api, tmp_path, "render", "job.json", *storage)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = renderfarm(api, tmp_path, "show", job.key, *storage).stdout
    assert "chunks: 3 of 3 done, 18 of 18 frames, " in shown
    done = renderfarm(api, tmp_path, "assemble", job.key, "-o", "film.mp4", *storage)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(frame_hashes(tmp_path / "film.mp4")) == 18
    old = ["--older-than-days", "0", "--job", job.key]
    looked = renderfarm(api, tmp_path, "clean", "cli", *old)
    assert looked.stdout.splitlines()[-1].endswith("of it is old"), looked.stdout + looked.stderr
    cleaned = renderfarm(api, tmp_path, "clean", "cli", *old, "--delete")
    assert cleaned.stdout.splitlines()[-1].endswith("of it is old and deleted")
    assert "chunks: 0 of 3 done" in renderfarm(api, tmp_path, "show", job.key, *storage).stdout


@pytest.mark.long
def test_deploy_again_keeps_what_a_person_changed(api: FarmClient, tmp_path: Path) -> None:
    """Schedules, parameters and variables stay; nothing is there twice."""
    with SyncPrefectClient(api.farm.api_url) as client:
        before = client.read_deployment_by_name("render-job/cloud")
        [nightly] = before.schedules
        client.update_deployment_schedule(before.id, nightly.id, active=True)
        change = DeploymentUpdate(
            parameters={"merge_lead": 29.0}, tags=["ours"], job_variables={"a": 1}
        )
        client._client.patch(
            f"/deployments/{before.id}",
            json=change.model_dump(mode="json", include={"parameters", "tags", "job_variables"}),
        ).raise_for_status()
        try:
            done = renderfarm(api, tmp_path, "deploy")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "deployment render-job/cloud: is there, on work pool cloud" in done.stdout
            after = client.read_deployment_by_name("render-job/cloud")
            assert [each.active for each in after.schedules] == [True]
            blocks = {"adapter": "local-adapter", "stitcher": "remux-stitcher"}
            ours = {
                name: {"$ref": {"block_document_id": str(document.id)}}
                for name, slug in blocks.items()
                for document in [client.read_block_document_by_name("default", slug)]
            }
            ours |= {"merge_deployment": "merge-job/local"}
            assert after.parameters == ours | {"merge_lead": 29.0}
            assert after.tags == ["ours", "renderfarm"]
            variables = after.job_variables or {}
            assert (variables["a"], "flow_engine" in variables["command"]) == (1, True)
            names = [each.name for each in client.read_automations()]
            assert len(names) == len(set(names)) == 2
        finally:
            client.update_deployment_schedule(before.id, nightly.id, active=False)


@pytest.mark.long
def test_deploy_elsewhere(api: FarmClient, tmp_path: Path) -> None:
    """A pool of another type gets its template; a wrong type, pool or block is refused."""
    for words, reason in (
        (["--type", "ecs"], "work pool 'cloud' is of type process, not ecs: name another pool"),
        (["--pool", "strange", "--type", "abacus"], "--type abacus: this server knows "),
        (["--notify", "slack-webhook/none"], "no such block is saved on the server"),
    ):
        done = renderfarm(api, tmp_path, "deploy", *words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert reason in done.stderr
    with SyncPrefectClient(api.farm.api_url) as client:
        try:
            for kind in ("docker", "ecs", "kubernetes"):
                own = ["--pool", kind, "--type", kind, "--variable", "image=farm:1"]
                done = renderfarm(api, tmp_path, "deploy", *own)
                assert done.returncode == 0, done.stderr
                assert f"prefect worker start --pool {kind} --type {kind}" in done.stdout
                chunks = client.read_deployment_by_name("render-chunks/cloud")
                assert chunks.work_pool_name == kind
                assert (chunks.job_variables or {})["image"] == "farm:1"
                job = client.read_deployment_by_name("render-job/cloud")
                assert job.work_pool_name == "cloud"
                template = client.read_work_pool(kind).base_job_template
                assert template == json.loads((FILES / "pools" / f"{kind}.json").read_text())
            assert renderfarm(api, tmp_path, "deploy").returncode == 0
            chunks = client.read_deployment_by_name("render-chunks/cloud")
            assert chunks.work_pool_name == "kubernetes"  # and not back on `cloud`
            named = ["-n", "render-chunks/cloud", "--prefect-file", str(FILES / "prefect.yaml")]
            done = api.command("deploy", *named, "--pool", "docker")
            assert done.returncode == 0, done.stdout + done.stderr
            chunks = client.read_deployment_by_name("render-chunks/cloud")
            assert chunks.work_pool_name == "docker"
        finally:
            assert renderfarm(api, tmp_path, "deploy", "--pool", "cloud").returncode == 0
            for kind in ("docker", "ecs", "kubernetes"):
                client.delete_work_pool(kind)


@pytest.mark.long
def test_in_a_terminal(api: FarmClient, tmp_path: Path) -> None:
    """One line changes until the film is there."""
    save_job(tmp_path, small_job())
    main, terminal = pty.openpty()
    with subprocess.Popen(
        [*RENDERFARM, "render", "job.json", "-o", "film.mp4"], cwd=tmp_path,
        env=api.farm.environment() | {"TERM": "xterm", "COLUMNS": "200"},
        stdin=terminal, stdout=terminal, stderr=terminal,
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = b""
        try:
            while part := os.read(main, 4096):
                shown += part
        except OSError:  # the other side is closed
            pass
        assert process.wait(60) == 0
    os.close(main)
    assert f"film: {tmp_path / 'film.mp4'} (18 frames".encode() in shown
    assert b"\x1b[" in shown
    assert b"running" in shown


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nojob.json", "-o", "f.mp4"], "job 'nojob.json': there is no such file in '/"),
        (["/no/job.json", "-o", "f.mp4"], "cannot be read"),
        (["job.json", "--adapter", "local-adapter/nope"], "no block has this name; saved are"),
        (["job.json", "-o", "f.xyz"], "the ending must be one of .mp4"),
        (["job.json", "-o", "f.mp4", "--stitcher", "foo"], "no block has this name; saved are"),
        (["job.json", "-o", "f.mp4", "--set", "retries"], "write it as name=value"),
        (["job.json", "-o", "/no/such/f.mp4"], "folder '/no/such' does not exist"),
        (["typo.json", "-o", "f.mp4"], "program 'blendr' is not on the PATH of worker "),
    ],
)
def test_check_says_what_is_wrong(
    api: FarmClient, tmp_path: Path, words: list[str], reason: str
) -> None:
    """In one line, without a run."""
    save_job(tmp_path, small_job())
    save_job(tmp_path, with_commands(small_job(), {1: "blendr -b"}), "typo.json")
    done = renderfarm(api, tmp_path, "check", *words)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("renderfarm: ")]
    assert reason in line


@pytest.mark.long
def test_failed_run(api: FarmClient, tmp_path: Path) -> None:
    """The last lines say why, and where to look."""
    save_job(tmp_path, with_commands(small_job(), {1: "false"}))
    done = renderfarm(api, tmp_path, "render", "job.json", "-o", "film.mp4")
    assert done.returncode == 1
    failed, see = done.stdout.splitlines()[-2:]
    assert failed.startswith("failed: chunk 1")
    assert "exit code 1" in failed
    assert see.startswith("see http://127.0.0.1:")


@pytest.mark.long
def test_ctrl_c_cancels(api: FarmClient, tmp_path: Path) -> None:
    """The run is cancelled, and waited for."""
    save_job(tmp_path, with_commands(small_job(), {0: "sleep 100"}))
    with subprocess.Popen(
        [*RENDERFARM, "render", "job.json", "-o", "film.mp4"], cwd=tmp_path,
        env=api.farm.environment(), stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = []
        while not lines or ": running" not in lines[-1]:
            lines.append(process.stdout.readline())
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(120) == 130
    assert "cancelling; Ctrl-C again leaves at once" in rest
    assert "cancelled: " in rest


def test_command_without_a_server(tmp_path: Path) -> None:
    """The fix is named."""
    own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path / "p")}
    done = subprocess.run(
        [*RENDERFARM, "render", "job.json"], cwd=tmp_path, env=own, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "renderfarm: no server: start a farm with `renderfarm up`, or set PREFECT_API_URL\n"
    )


def test_plan_that_cannot_be(tmp_path: Path) -> None:
    """It is refused, and no job file is written."""
    plan = ["plan", "-o", str(tmp_path / "film.json"), "--frames", "18", "--fps", "24"]
    for words, reason in (
        ([], "no command"),
        (["--", "render", "{output}"], "give either chunk_frames or chunks"),
        (["--chunks", "2", "--", "render", "{nothing}"], r"has the unknown field \{nothing\}"),
    ):
        with pytest.raises(Refused, match=reason):
            app([*plan, *words], result_action="return_value")
    for text, reason in (
        ("total_frames: [", "cannot be read"),
        ("- 1", "write lines such as"),
        ("command_template: x {output}\nfps: 24", "the plan has no total_frames: give --frames"),
        ("command_template: x {output}\nfps: 24\ntotal_frames: 9\nframe: 9", "'frame'"),
    ):
        (tmp_path / "film.yaml").write_text(text)
        words = ["-o", str(tmp_path / "film.json"), "--from", str(tmp_path / "film.yaml")]
        with pytest.raises(Refused, match=reason):
            app(["plan", *words], result_action="return_value")
    assert [path.name for path in tmp_path.iterdir()] == ["film.yaml"]


def test_plan_from_yaml(tmp_path: Path) -> None:
    """The parameters of `plan_job` in a file; what is typed counts more."""
    (tmp_path / "film.yaml").write_text(
        "total_frames: 18\nfps: 30000/1001\nchunks: 3\nmerge_command: join it\n"
        "command_template: render {start} {output}\n"
    )
    words = ["-o", str(tmp_path / "film.json"), "--from", str(tmp_path / "film.yaml")]
    app(["plan", *words, "--chunks", "2"], result_action="return_value")
    job = RenderJob.model_validate_json((tmp_path / "film.json").read_text())
    assert [chunk.command for chunk in job.chunks] == [
        "render 0 chunks/00000.mp4",
        "render 9 chunks/00001.mp4",
    ]
    assert (job.id, job.metadata.fps, job.merge_command) == ("film", "30000/1001", "join it")


@pytest.mark.long
def test_notifications(api: FarmClient, tmp_path: Path) -> None:
    """A webhook of a saved block is told of a film that is ready, and of a job that failed."""
    told: queue.Queue[str] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    def heard(text: str) -> None:
        # The farm's other jobs are told of, too.
        while text not in told.get(timeout=60):
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    address = SecretStr(f"http://127.0.0.1:{receiver.server_port}/")
    with SyncPrefectClient(api.farm.api_url) as client:
        try:
            Webhook(method="POST", url=address).save("told", overwrite=True)
            done = renderfarm(api, tmp_path, "deploy", "--notify", "webhook/told")
            assert "automation renderfarm-film-ready: created" in done.stdout, done.stderr
            again = renderfarm(api, tmp_path, "deploy", "--notify", "webhook/told")
            assert "created" not in again.stdout
            save_job(tmp_path, small_job(id="told"))
            done = renderfarm(api, tmp_path, "render", "job.json", "-o", "film.mp4")
            assert done.returncode == 0, done.stdout
            heard(f"told: film: {tmp_path / 'film.mp4'} (18 frames")
            save_job(tmp_path, with_commands(small_job(id="told"), {1: "false"}), "unlucky.json")
            renderfarm(api, tmp_path, "render", "unlucky.json")
            heard("render unlucky: chunk 1: its command ended with exit code 1")
        finally:
            receiver.shutdown()
            for automation in client.read_automations():
                if "lost-runs" not in automation.name:
                    client.delete_automation(automation.id)
