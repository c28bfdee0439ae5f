"""The command `tfcompress bench`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tfcompress.cli.options import Json, Quiet
from tfcompress.cli.terminal import Progress, emit, emit_json, emit_table, say

_RESULTS = Path("tfcompress-bench.jsonl")


def bench(
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this task; may be repeated.", show_default=False),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this method, and float32; may be repeated.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many trainings of each, 1 by default; 3 tell how much they scatter.",
            show_default=False,
        ),
    ] = None,
    short: Annotated[
        bool, typer.Option("--short", help="A few methods and few steps, on the digits.")
    ] = False,
    long: Annotated[
        bool,
        typer.Option(
            "--long",
            help="Fine-tune for half of the steps of the float model's training; what steps cost "
            "is not measured.",
        ),
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="A folder of real data sets; tasks whose set is in it use it.",
            show_default=False,
        ),
    ] = None,
    results: Annotated[
        Path, typer.Option(help="The file that results are appended to, JSON lines.")
    ] = _RESULTS,
    report: Annotated[
        Path | None,
        typer.Option(
            help="The HTML report; by default that of the results with the ending .html.",
            show_default=False,
        ),
    ] = None,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Only draw table and report anew, from the results."),
    ] = False,
    vela: Annotated[
        bool,
        typer.Option(
            "--vela", help="Install Vela for Ethos-U figures; where it is there, it is used."
        ),
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="List the tasks and methods, and do nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods of compression: train, convert and run them side by side.

    \b
    Examples:
      tfcompress bench --short
      tfcompress bench --list
      tfcompress bench --task keywords --task digits --results keywords.jsonl
      tfcompress bench --method qat_int8 --method qat_int8_tfmot --seeds 5
      tfcompress bench --long --task keywords --method prune80_distill_int8
      tfcompress bench --report-only --report bench.html

    Each method starts from the same float model and trains for the same number of steps. What the
    results file has already is not run again, so that an interrupted benchmark goes on where it
    was, and more seeds may be added later. One task with all methods takes 4 to 20 minutes for each
    seed on 2 cores with AVX-512, up to 40 without; the short form takes one or two. The long form
    starts from the same float models.

    Exit status: 1 if a method failed, which its line in the results tells.
    """
    if list_:
        _print_list(json)
        return
    if short and long:
        raise ValueError("received --short and --long; expected one form. Leave one of them out.")
    form = "short" if short else "long" if long else None
    if report_only and (task or method or seeds or data_dir or vela):
        raise ValueError(
            "--report-only draws what the results hold; expected no --task, --method, --seeds, "
            "--data-dir or --vela with it. Leave them out, or leave --report-only out."
        )
    with Progress(quiet) as progress:
        from tfcompress.bench.running import bench as running

        if report_only:
            found = running.report_only(results, report, form)
        else:
            with _told_when_interrupted(results):
                found = running.bench(
                    task,
                    method,
                    seeds=seeds or 1,
                    form=form or "full",
                    data_dir=data_dir,
                    results=results,
                    report=report,
                    vela=vela,
                    progress=progress,
                )
    emit(found, json)
    if found.failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _told_when_interrupted(results: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say(f"What is measured is kept in '{results}': the same command goes on from there.")
        raise


def _print_list(as_json: bool) -> None:
    from tfcompress.bench.methods import METHODS
    from tfcompress.bench.tasks import TASKS

    tasks = []
    for task in TASKS.values():
        classes, parameters, macs = task.generated or task.published
        row = {"task": task.name, "title": task.title, "classes": str(classes or "none")}
        row |= {"parameters": f"{parameters:,}", "MACs": f"{macs:,}"}
        tasks.append({**row, "real data": task.real or "none"})
    methods = [
        {"method": each.name, "title": each.title, "by": each.who, "family": each.family}
        for each in METHODS.values()
    ]
    if as_json:
        emit_json({"tasks": tasks, "methods": methods})
        return
    for rows in (tasks, methods):
        emit_table(rows, False)
