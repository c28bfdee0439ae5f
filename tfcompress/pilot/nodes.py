"""A trial on a machine that need not have any of its files; imports little, as each node does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfcompress.files import temporary
from tfcompress.files.processes import Failed, preload, run_apart
from tfcompress.pilot.job import Job

Run = Callable[[Job], dict[str, Any]]

# Imported once, by the server that processes are forked from, and not by each of them. Nothing of
# it starts TensorFlow, whose threads no fork would have.
PRELOADED = (
    *("tfcompress.files.tied", "tensorflow", "keras", "ai_edge_litert.interpreter"),
    *("litert_quantizer", "tfcompress.registered", "tfcompress.pilot.trial"),
)


def on_node(
    run: Run,
    job: Job,
    paths: list[str],
    before: dict[str, bytes],
    seconds: float,
    memory: int | None,
    preloaded: Sequence[str],
    *contents: bytes,
) -> tuple[dict[str, Any] | None, str | None, dict[str, bytes]]:
    """Carries out a job on a machine that need not have any of its files."""
    preload(preloaded)
    with temporary.folder() as name:
        folder = Path(name)
        own = {}
        for number, (path, content) in enumerate(zip(paths, contents, strict=True)):
            own[path] = folder / f"{number}{Path(path).suffix}"
            own[path].write_bytes(content)
        work = folder / "trial"
        unpack(work, before)
        moved = _moved(job, {path: str(here) for path, here in own.items()}, str(work))
        try:
            figures, error = run_apart(run, moved, seconds=seconds, memory=memory), None
        except Failed as failed:
            figures, error = None, str(failed)
        return figures, error, packed(work)


def _moved(job: Job, paths: dict[str, str], folder: str) -> Job:
    """A job with its files elsewhere."""
    training = dict(job.training)
    if training.get("validation_data") is not None:
        training["validation_data"] = paths[training["validation_data"]]
    base = None if job.base is None else paths[job.base]
    return dataclasses.replace(
        job, folder=folder, model=paths[job.model], data=paths[job.data], base=base,
        training=training,
    )  # fmt: skip


def packed(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their paths in it."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def unpack(folder: Path, files: dict[str, bytes]) -> None:
    """Makes a folder hold these files, and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in packed(folder).keys() - files.keys():
        (folder / name).unlink()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
