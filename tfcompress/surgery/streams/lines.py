"""What is known of the frames of a tensor while a model is made one over a stream."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Line:
    """How a tensor of the window model comes frame by frame.

    Attributes:
        axis: of its frames; None of what is the same in both models, once its whole window is kept
            or its latest value alone is read.
        length: frames of a window; None if that is not known.
        stride: frames of the model's input for one of its own.
        late: how many frames come before the first that the window has; less than 0 where zeros
            are in front of it.
        zeros: frames of zeros in front of the window, which the stream does not have.
    """

    axis: int | None
    length: int | None
    stride: int = 1
    late: int = 0
    zeros: int = 0

    @property
    def place(self) -> int:
        """The axis of the frames of a tensor that has them."""
        return self.axis or 0

    @property
    def first(self) -> int:
        """The number of the first frame that depends on the stream's first alone."""
        return self.late + self.zeros

    @property
    def reach(self) -> int:
        """How many frames of the input there are from the window's first on when it is over."""
        if self.length is None:
            raise Ahead("its window is of no known length: pass a model whose input has one")
        return (self.length + self.late) * self.stride

    def changed(self, **values) -> Line:
        return dataclasses.replace(self, **values)


class Ahead(ValueError):
    """A layer that reads frames that a stream does not have yet, or nothing knows which.

    Args:
        reason: as "it ..." goes on.
        window: whether a buffer of its whole window is a way out.
    """

    def __init__(self, reason: str, window: bool = True):
        super().__init__(reason)
        self.reason, self.window = reason, window
