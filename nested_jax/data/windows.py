"""Windows of a text that are always the same ones, to score a model on."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of a text, cut out when they are asked for: a text may be larger than memory.

    Attributes:
      tokens: integers [N]; may be mapped from a file.
      starts: int64 [W], the first token of each.
      size: tokens of a window.

    Example:
      >>> windows = Windows(np.arange(10), np.array([0, 3, 6]), 4)
      >>> len(windows), windows[1:].tolist()
      (3, [[3, 4, 5, 6], [6, 7, 8, 9]])
    """

    tokens: np.ndarray
    starts: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which: slice) -> np.ndarray:
        """Some of the windows, int32 [_, size]."""
        return self.tokens[self.starts[which, None] + np.arange(self.size)].astype(np.int32)


def validation_windows(tokens: np.ndarray, sequence_length: int, count: int | None = None) -> Windows:
    """Windows spread evenly over a text, always the same ones.

    Args:
      tokens: integers [N], at least `sequence_length + 1` of them.
      sequence_length: Tokens per window, less one.
      count: How many windows; fewer come back if the text has no more that do not share targets. None for all.

    Returns:
      min(count, (N - 1) // sequence_length) windows of `sequence_length + 1` tokens.

    Raises:
      ValueError: If the text is shorter than one window or `count` is below 1.
    """
    if (count is not None and count < 1) or len(tokens) < sequence_length + 1:
        raise ValueError(
            f"validation_windows: expected count >= 1 and at least sequence_length + 1 = {sequence_length + 1} tokens, "
            f"got count={count} and {len(tokens)} tokens"
        )
    windows = (len(tokens) - 1) // sequence_length
    count = windows if count is None else min(count, windows)
    chosen = np.arange(count, dtype=np.int64) * windows // count
    return Windows(tokens, chosen * sequence_length, sequence_length + 1)
