"""auto: the best file for a device within budgets, found by trying recipes."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfcompress.errors import check, is_whole
from tfcompress.pilot.asked import Asked, PathLike, seconds_of
from tfcompress.pilot.budget import Budget
from tfcompress.pilot.judging import Metric
from tfcompress.pilot.pilot import Pilot
from tfcompress.pilot.result import AutoResult
from tfcompress.pilot.space import Space
from tfcompress.pilot.trial import run
from tfcompress.pilot.workers import Here, OnRay, Workers, stopped
from tfcompress.results import say

Progress = Callable[[str, int, int | None], Any]


def auto(
    model: keras.Model | PathLike,
    data: Any,
    output: PathLike = "best.tflite",
    *,
    budget: str | Mapping[str, Any] | Budget,
    target: str | None = None,
    time: str | float | None = None,
    trials: int | None = None,
    space: PathLike | Space | None = None,
    metric: Metric | str | None = None,
    epochs: int | Sequence[int] | None = None,
    engine: str = "tpe",
    workers: int | None = None,
    ray: str | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    storage: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    keep_files: bool = False,
    memory: int | None = None,
    accelerator: str | None = None,
    io_dtype: str | None = None,
    scaling: str | None = None,
    report: bool = True,
    progress: Progress | None = None,
    **training: Any,
) -> AutoResult:
    """The best file for a device within budgets, found by trying recipes on a model.

    Files after training come first, then recipes with a short training; the best of these are
    trained for longer, and of these again the best (successive halving). Which recipes are tried is
    chosen by Optuna among all that the space holds. Every budget is checked on the file itself.

    Args:
        model: a float Keras 3 model, compiled, or its .keras or .h5 file.
        data: (x, y); a .npz file of the arrays x and y, see `tfcompress compress`; or a folder with
            a folder of images for each class. A fifth is held out, on which files are judged,
            unless `validation_data` or `validation_split` are given. Where the model was trained
            on all of the data, that flatters the float file: give validation data of their own.
        output: the .tflite file to write; beside it come the model (.keras), the recipe (.yaml) and
            a page on the search (.html).
        budget: what the file may cost and must reach, "flash=48k,quality=-0.5" or a mapping.
            flash: bytes of the file, on a microcontroller with weights in codes where that is
            smaller. ram: bytes of the arena as TFLite Micro measures it, or of LiteRT's tensors.
            latency: parts of the float file's time on this machine, "0.5x". cycles: as Vela counts
            them for `accelerator`. macs. quality: points below the float file (-0.5), percent of
            it (-1%), or a number to reach (0.9). Costs also as parts of the float file's, "0.25x".
            With quality the file that costs least is sought, without it the best one.
        target: a device, see `list_targets`.
        time: of the whole search, "2h" or seconds.
        trials: or how many trials, which are the same each time with one worker and one seed.
        space: a `Space` or its YAML file; None makes one from the model, see `space.yaml` in the
            folder of the search.
        metric: the quality: a function f(labels, outputs) -> float, higher is better, or the name
            of a metric that the model was compiled with; None: the first of these, accuracy for
            crossentropies, or the loss.
        epochs: of the turns of a training, such as (2, 4, 12), each of which begins where the one
            before ended. None: turns of some 150, 300 and 900 steps.
        engine: "tpe", "nsga2" (evolution for several objectives), "evolution" (aging),
            "reinforcement" (a policy gradient) or "random".
        workers: trials at a time, by Ray on this machine; None: one, without Ray.
        ray: the address of a Ray cluster, or "auto".
        cpus, gpus: that Ray keeps for one trial.
        storage: where Optuna keeps the trials, such as "sqlite:///trials.db"; None: a journal in
            the folder `<output>.auto`. Several processes may search on one storage and folder.
        resume: go on with the search in that folder: no trial that ended is lost.
        overwrite: begin anew although there is one.
        keep_files: keep the files of all trials in the folder, not of the best ones alone.
        memory: the most bytes of memory that a trial may take.
        accelerator: an Ethos-U such as "ethos-u55-128": flash, RAM and cycles are Vela's.
        io_dtype: of the file, see `convert`.
        scaling: of images, "none" (0 to 255), "0_1" or "-1_1"; None: what the model tells.
        report: write the page.
        progress: called as `progress(stage, done, total)`.
        **training: of `tfcompress compress`: batch_size=32, loss, from_logits, optimizer,
            learning_rate, validation_data, validation_split, seed=0.

    Returns:
        An `AutoResult`: the file and its figures, all that was tried, the Pareto front, what each
        step was worth, and the commands that make the file again.

    Raises:
        ImportError: if Optuna, or Ray where it is asked for, is not installed.
        TypeError, ValueError: if an argument, the model or the data will not do, the time is too
            short for one trial, or nothing that was tried keeps the budgets; says the nearest.

    Example:
        >>> found = auto(model, (x, y), "best.tflite", target="microcontroller",
        ...              budget="flash=48k,ram=64k,quality=-0.5", time="30m")  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP

    References:
        Successive halving: Li et al. 2018, arXiv:1810.05934. TPE: Bergstra et al. 2011, "Algorithms
        for Hyper-Parameter Optimization". NSGA-II: Deb et al. 2002.
    """
    start = clock.monotonic()
    given = Asked(
        model=model,
        data=data,
        output=os.fspath(output),
        budget=Budget.parse(budget),
        target=target,
        seconds=seconds_of(time),
        trials=trials,
        space=space,
        metric=metric,
        epochs=epochs,
        engine=engine,
        storage=storage,
        resume=resume,
        overwrite=overwrite,
        accelerator=accelerator,
        io_dtype=io_dtype,
        scaling=scaling,
        training=training,
    )
    made: Workers
    if workers is not None or ray is not None:
        check(workers is None or is_whole(workers), "workers", "1 or more", workers)
        made = OnRay(run, memory, ray, workers, cpus, gpus)
    else:
        made = Here(run, memory)
    with stopped(made):
        pilot = Pilot(given, made, start, progress or (lambda stage, done, total: None))
        try:
            return pilot.run(keep_files, report)
        except KeyboardInterrupt:
            say(f"What was tried is kept in '{given.folder}': go on with --resume added.")
            raise
