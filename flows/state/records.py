"""A job's records: small files beside its chunks, which all who work at the job can read."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.storage.atomic_file import remove_leftovers, write_atomic
from prefect_renderfarm.flows.jobs.checks import RECORDS
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.results import MergeReport, RenderReport


class JobRecords:
    """One job's records, in the job folder.

    Args:
        path: The job folder, absolute.
        job: The job.
    """

    def __init__(self, path: Path, job: RenderJob) -> None:
        self.path = path
        self.job = job
        self.records = path / RECORDS / job.key
        self.job_file = self.records / "job.json"

    def write_record(self, name: str, text: str) -> None:
        """Write one of the job's records, where all who work at the job can read it."""
        write_atomic(self.records / name, text)

    def read_record(self, name: str) -> str | None:
        """Return one of the job's records; None: it is not there."""
        try:
            return (self.records / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def list_records(self, folder: str) -> list[str]:
        """Return the names of the records in a folder of theirs, such as `leases`."""
        names: list[str] = []
        with suppress(FileNotFoundError):
            names = [path.name for path in (self.records / folder).iterdir()]
        return [f"{folder}/{name}" for name in names if not name.startswith(".")]

    def delete_record(self, name: str) -> None:
        """Delete one of the job's records, if it is there."""
        path = self.records / name
        path.unlink(missing_ok=True)
        remove_leftovers(path)

    def delete_notes(self) -> None:
        """Delete what runs of the job wrote to each other, for when none is at it any more."""
        shutil.rmtree(self.records / "runs", ignore_errors=True)

    def save_report(self, report: RenderReport) -> None:
        """Write what the job came to."""
        write_atomic(self.records / "report.json", report.model_dump_json())

    def save_merge(self, report: MergeReport, run_id: str) -> None:
        """Write how a run assembled the film."""
        for name in (_merge_record(run_id), "merge.json"):
            self.write_record(name, report.model_dump_json())

    def load_merge(self, run_id: str) -> MergeReport:
        """Return how a run assembled the film.

        Raises:
            SetupError: It wrote elsewhere.
        """
        text = self.read_record(_merge_record(run_id))
        if text is None:
            raise SetupError(self._without_merge)
        return MergeReport.model_validate_json(text)

    @property
    def _without_merge(self) -> str:
        return (
            f"job folder {str(self.path)!r} is not the folder that merge-job sees under that "
            "path: let both work pools share it"
        )


def _merge_record(run_id: str) -> str:
    return f"runs/{run_id}-merge.json"
