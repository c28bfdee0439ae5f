"""fine_tune, distill and shrink: files in, a smaller file out."""

from collections.abc import Callable
from typing import Any

from tfcompress.fine_tuning.job import Job
from tfcompress.fine_tuning.operating import operate_alone
from tfcompress.fine_tuning.options import Options, PathLike
from tfcompress.fine_tuning.result import FineTuned
from tfcompress.fine_tuning.shrunk import ShrunkFile
from tfcompress.surgery.settings import Shrink

Progress = Callable[[str, int, int | None], Any]


def fine_tune(
    model: PathLike,
    recipe: PathLike,
    data: PathLike,
    output: PathLike,
    *,
    epochs: int,
    teacher: PathLike | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> FineTuned:
    """Fine-tunes a saved model under a recipe, and writes what comes out.

    After each epoch the state is kept in the folder `<output>.checkpoint`, which is removed at the
    end; a training that is resumed gives what an uninterrupted one gives.

    Args:
        model: a .keras or .h5 file. Loss, optimizer and metrics are those it was compiled with.
        recipe: a YAML file, or the name of a ready recipe; see `Recipe.load`. With a section
            `distill` the model also learns from a teacher. With a section `shrink` surgery makes it
            smaller first, and it trains in float for the epochs of that section before the rules
            apply; steps that look at data get up to 512 samples of `data`.
        data: a .npz file of the arrays x and y (or x_train and y_train), or of arrays that have the
            names of the model's inputs and outputs.
        output: the file to write: `.keras` (of `finalize`) or `.tflite` (of `convert`).
        epochs: how often the data are gone through under the rules of the recipe.
        teacher: a .keras or .h5 file, for a recipe with a section `distill`; by default the model
            itself as it was before.
        progress: called as `progress(stage, done, total)`.
        **options: batch_size=32;
            loss, optimizer: names of Keras losses and optimizers, instead of the saved ones;
            from_logits: the model gives logits, for a crossentropy that `loss` names;
            learning_rate: instead of the optimizer's; it falls to 0 along a cosine unless the
            saved optimizer has a schedule of its own, or constant_rate is true;
            validation_data: a .npz file to judge with, also of x_val and y_val or x_test and
            y_test; or validation_split: a fraction of `data`, drawn at random;
            seed=0: of the order of samples and all that is random;
            precision, io_dtype, target: of a .tflite file, see `convert`; by default the precision
            that the recipe trains for;
            resume: go on with an interrupted training of the same settings;
            overwrite: begin anew although there is one.

    Returns:
        A `FineTuned`: loss and metrics before, after surgery and after training; sparsity, sizes.

    Raises:
        ValueError, OSError: if a file or an argument will not do, before training begins; or if the
            loss becomes infinite.

    Example:
        >>> fine_tune("model.keras", "int8", "digits.npz", "a.tflite", epochs=5)  # doctest: +SKIP
    """
    given = Options(model, recipe, data, output, epochs, teacher=teacher, **options)
    return Job(given, progress or (lambda stage, done, total: None)).run()


def distill(
    teacher: PathLike,
    student: PathLike,
    data: PathLike,
    output: PathLike,
    *,
    epochs: int,
    recipe: PathLike | None = None,
    alpha: float | None = None,
    temperature: float | None = None,
    cache: PathLike | None = None,
    start_from_teacher: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> FineTuned:
    """Trains a saved student from a saved teacher, and writes what comes out.

    It is checkpointed and resumed as `fine_tune` is.

    Args:
        teacher: a .keras or .h5 file, which is only read.
        student: a .keras or .h5 file. Loss, optimizer and metrics are those it was compiled with.
        data: see `fine_tune`; without labels, as the array x alone, if alpha is 0. The student is
            then judged by how near it is to the teacher.
        output: the file to write, `.keras` or `.tflite`.
        epochs: how often the data are gone through.
        recipe: a YAML file, or the name of a ready recipe: its rules compress the student, its
            section `distill` says what is learned. Without it, the soft labels of all outputs.
        alpha, temperature, cache, start_from_teacher: see `Distillation`; they go before those of
            the recipe.
        progress: called as `progress(stage, done, total)`.
        **options: see `fine_tune`.

    Returns:
        A `FineTuned`, with loss and metrics of the teacher as well.

    Raises:
        ValueError, OSError: see `fine_tune`; also if teacher and student do not fit together.

    Example:
        >>> distill("big.keras", "small.keras", "a.npz", "b.tflite", epochs=5)  # doctest: +SKIP
    """
    told = {"alpha": alpha, "temperature": temperature, "cache": cache}
    told = {name: value for name, value in told.items() if value is not None}
    told |= {"start_from_teacher": True} if start_from_teacher else {}
    given = Options(student, recipe, data, output, epochs, teacher=teacher, told=told, **options)
    return Job(given, progress or (lambda stage, done, total: None)).run()


def shrink(
    model: PathLike,
    output: PathLike,
    steps: Shrink,
    *,
    data: PathLike | None = None,
    epochs: int = 0,
    distill: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> FineTuned | ShrunkFile:
    """Makes a saved model smaller by surgery, and trains what is left of it if asked to.

    A training is checkpointed and resumed as that of `fine_tune` is.

    Args:
        model: a .keras or .h5 file.
        output: the file to write, `.keras` or `.tflite`.
        steps: the surgery; its own `epochs` must be 0.
        data: a .npz file, see `fine_tune`: for the training, and for steps that look at data, which
            get up to 512 samples. Without training the inputs alone may be enough.
        epochs: how often the data are gone through after surgery; 0 does not train.
        distill: the smaller model learns from the soft labels of the original, or of `teacher`.
        progress: called as `progress(stage, done, total)`.
        **options: see `fine_tune`; also teacher.

    Returns:
        A `FineTuned`; without training a `ShrunkFile`, which tells no loss.

    Raises:
        ValueError, OSError: see `fine_tune`; also if the surgery cannot be done.

    Example:
        >>> half = Shrink({"channels": {"macs": 0.5}})
        >>> shrink("model.keras", "half.keras", half)  # doctest: +SKIP
    """
    if not isinstance(steps, Shrink) or steps.epochs:
        raise ValueError(
            f"steps must be a Shrink without epochs of its own; received {steps!r}. Pass epochs "
            "beside it."
        )
    told: dict[str, Any] | None = {} if distill else None
    given = Options(model, None, data, output, epochs, told=told, shrink=steps, **options)
    progress = progress or (lambda stage, done, total: None)
    return Job(given, progress).run() if epochs else operate_alone(given, steps, progress)
