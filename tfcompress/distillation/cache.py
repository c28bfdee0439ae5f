"""The outputs of a teacher, kept for each sample: it runs once per sample, not once per epoch."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.distillation.kept_outputs import (
    Incoming,
    Kept,
    Spec,
    describe,
    keys_of,
    read,
    require_same,
    spec,
    specs_of,
    write,
)
from tfcompress.files import writing


class TeacherCache:
    """Keeps what a teacher gives for each sample, found again by the content of the sample.

    So it needs no indices: data may be arrays, a `tf.data.Dataset` or a generator, shuffled and in
    batches of any size. Samples that change at random from epoch to epoch are noticed and refused.
    All methods may be called from several threads. An exception also stays in `error`, since those
    raised in a callback on the host reach the caller mangled.

    Args:
        path: the file that later trainings read, too; None keeps all in memory.
    """

    def __init__(self, path: writing.PathLike | None = None):
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise TypeError(
                f"a cache is kept in a file or in memory; expected its path or None, received "
                f"{type(path).__name__}."
            )
        self.path = None if path is None else Path(path)
        self.error: Exception | None = None
        self._lock = threading.RLock()
        self._kept: Kept | None = None
        self._incoming: Incoming | None = None
        self._running = False

    @property
    def samples(self) -> int:
        """How many samples are kept; those of an unfinished epoch do not count."""
        return len(self._kept.keys) if self._kept else 0

    def begin(
        self,
        fingerprint: str,
        specs: Iterable[tuple[Iterable[Any], Any]],
        *,
        whole_epochs: bool,
        replicas: int = 1,
    ) -> None:
        """Opens the cache for a training.

        Args:
            specs: shape per sample and dtype of each output.
        """
        self.close()
        self.error = None
        with self._remembered():
            wanted = [spec(*pair) for pair in specs]
            kept = self._opened(fingerprint, wanted)
            self._settled = whole_epochs and self.path is not None and kept.complete
            if self.path is not None and not self._settled:
                writing.check_writable(self.path)
            self._whole_epochs, self._replicas = whole_epochs, replicas
            self._hits = self._misses = self._late = self._batch = 0
            self._warned, self._inputs = False, kept.inputs
            self._kept, self._running = kept, True

    def lookup(self, inputs: Sequence[np.ndarray]) -> tuple[bool, list[np.ndarray]]:
        """The outputs for a batch, if they are kept for all of its samples."""
        with self._remembered():
            kept = self._begun()
            arrays = [np.asarray(array) for array in inputs]
            known, rows = kept.find(keys_of(arrays))
            with self._lock:
                self._count(kept, known, arrays)
            if known.all():
                return True, [np.take(output, rows, axis=0) for output in kept.outputs]
            return False, [np.zeros((len(known), *shape), dtype) for shape, dtype in kept.specs]

    def store(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Takes the outputs for a batch; they are found from the end of the epoch on."""
        with self._remembered():
            kept = self._begun()
            arrays = [np.asarray(array) for array in inputs]
            rows = [np.asarray(array) for array in outputs]
            keys = keys_of(arrays)
            _require_rows(rows, kept.specs, len(keys))
            new = ~kept.find(keys)[0]
            if not new.all():
                keys, rows = keys[new], [row[new] for row in rows]
            with self._lock:
                self._inputs = self._inputs or describe(specs_of(arrays))
                if len(keys):
                    self._append(keys, rows)

    def end_epoch(self, *, cut_short: bool = False) -> None:
        """Keeps what was stored; a file is written anew, in whole."""
        with self._remembered(), self._lock:
            kept = self._begun()
            self._warn_of_change(kept)
            whole = self._whole_epochs and not cut_short
            try:
                if self._incoming is not None:
                    complete = whole or (self._whole_epochs and kept.complete)
                    self._commit(kept, self._incoming, complete)
            finally:
                self._drop_incoming()
            if whole and self.samples:
                self._settled = True
            self._hits = self._misses = 0

    def close(self) -> None:
        """Ends a training, finished or not: what an unfinished epoch stored is dropped."""
        with self._lock:
            self._drop_incoming()
            self._running = False
            if self.path is not None:
                self._kept = None

    def _opened(self, fingerprint: str, specs: list[Spec]) -> Kept:
        empty = Kept.none(fingerprint, specs)
        if self.path is None:
            kept = self._kept
            same = kept and kept.fingerprint == fingerprint and kept.specs == specs
            return kept if kept and same else empty
        if not self.path.is_file():
            return empty
        kept = read(self.path)
        require_same(kept, self.path, fingerprint, specs)
        return kept

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def _begun(self) -> Kept:
        if self._kept is None or not self._running:
            raise RuntimeError("the cache is closed; expected a call of `begin` first.")
        return self._kept

    def _append(self, keys: np.ndarray, rows: list[np.ndarray]) -> None:
        try:
            if self._incoming is None:
                folder = self.path and Path(os.path.realpath(self.path)).parent
                self._incoming = Incoming(self._begun().specs, folder)
            self._incoming.append(keys, rows)
        except OSError as error:
            self._drop_incoming()  # Its columns may differ in length now.
            raise writing.unwritable(error, self.path or "", "rows of new samples") from error

    def _commit(self, kept: Kept, incoming: Incoming, complete: bool) -> None:
        if self.path is None:
            self._kept = kept.merged(incoming, complete=complete, inputs=self._inputs)
            return
        self._kept = write(self.path, kept, incoming, complete=complete, inputs=self._inputs)

    def _drop_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None

    def _count(self, kept: Kept, known: np.ndarray, inputs: list[np.ndarray]) -> None:
        new = int(np.count_nonzero(~known))
        self._hits += len(known) - new
        self._misses += new
        self._batch = max(self._batch, len(known))
        if not self._settled or not new:
            return
        self._late += new
        # A batch that is not full may be left out at the end of each shuffled epoch.
        if self._late > self._batch * self._replicas - 1:
            raise ValueError(self._change(kept, describe(specs_of(inputs))))

    def _change(self, kept: Kept, received: str) -> str:
        """What to say of samples that should not be new."""
        where = f"'{self.path}'" if self.path else "the cache"
        kinds = ""
        if kept.inputs not in ("", received):
            kinds = f" These are {received} per sample, those {kept.inputs}."
        return (
            f"expected samples that are in {where}, which holds all {self.samples:,} of an earlier "
            f"epoch or training; received others ({self._late} so far).{kinds} If the data are "
            "augmented at random, make the augmentation layers a part of the student, or leave out "
            "the cache. For other data, name another file."
        )

    def _warn_of_change(self, kept: Kept) -> None:
        if self._whole_epochs or self._warned or self._hits or not self._misses:
            return
        if len(kept.keys):
            self._warned = True
            warnings.warn(
                f"none of the {self._misses:,} samples of this epoch was among the "
                f"{self.samples:,} that are cached: the data seem to change from epoch to epoch, "
                "and the cache only grows. If they are augmented at random, leave out the cache.",
                stacklevel=3,
            )


def _require_rows(rows: list[np.ndarray], specs: list[Spec], count: int) -> None:
    """Refuse outputs that are not as the training began."""
    received = specs_of(rows) if all(row.ndim for row in rows) else []
    if received != specs or any(len(row) != count for row in rows):
        raise ValueError(
            f"a cache takes {count} rows of {describe(specs)}; received arrays "
            f"{', '.join(f'{row.dtype.name} {row.shape}' for row in rows)}. Give each sample its "
            "outputs, as told to `begin`."
        )
