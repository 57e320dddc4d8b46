"""Ragged data, flat in Arrow's list layout: the types of the buffers, and what is refused where they contradict.

`token_ids_N` int32 holds the tokens of all completions, `offsets` int64[R+1] where each begins and the last ends,
`group_offsets` int64[P+1] the same of the groups among the completions.
"""

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


def within(lengths: Int64) -> Int64:
    """0, 1, ... within each run of the given lengths: for [2, 0, 3] that is 0 1 0 1 2."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def check_layout(token_ids_N: Int32, offsets: Int64, group_offsets: Int64) -> tuple[Int32, Int64, Int64]:
    """The three buffers as int32, int64, int64; ValueError where they contradict each other."""
    offsets, group_offsets = check_ragged(offsets, group_offsets)
    return check_tokens(token_ids_N, offsets), offsets, group_offsets


def check_tokens(token_ids_N: Int32, offsets: Int64) -> Int32:
    """The tokens as an array; ValueError where they are not int32, or the offsets not theirs."""
    token_ids_N = np.asarray(token_ids_N)
    if token_ids_N.dtype != np.int32 or token_ids_N.ndim != 1:
        raise ValueError(
            f"token_ids_N: expected a flat int32 array, got {token_ids_N.dtype} of shape {token_ids_N.shape}; "
            "token ids are stored as int32: cast with .astype(np.int32)"
        )
    if offsets[0] < 0 or offsets[-1] > token_ids_N.size:
        raise ValueError(
            f"offsets: expected them inside token_ids_N, [0, {token_ids_N.size}], got [{offsets[0]}, {offsets[-1]}]; "
            "offsets count tokens of this very buffer: pass the values they came with"
        )
    return token_ids_N


def check_ragged(offsets: Int64, group_offsets: Int64) -> tuple[Int64, Int64]:
    """Both offsets as int64; ValueError where they cannot be offsets, or the groups are not of these completions."""
    offsets, group_offsets = _check_offsets("offsets", offsets), _check_offsets("group_offsets", group_offsets)
    if group_offsets[0] != 0 or group_offsets[-1] != offsets.size - 1:
        raise ValueError(
            f"group_offsets: expected 0 to {offsets.size - 1}, got {group_offsets[0]} to {group_offsets[-1]}; they "
            "count completions, each in one group: subtract group_offsets[0], or pass the missing completions too"
        )
    return offsets, group_offsets


def _check_offsets(name: str, offsets: Int64) -> Int64:
    array = np.asarray(offsets)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name}: expected a flat integer array of one entry or more, got {array.dtype} of shape {array.shape}; "
            "n lists have n + 1 offsets: for no lists pass np.array([0])"
        )
    array = array.astype(np.int64, copy=False)
    falls = np.flatnonzero(array[1:] < array[:-1]) + 1
    if falls.size:
        raise ValueError(
            f"{name}: expected offsets that never fall, got {array[falls[0] - 1]} then {array[falls[0]]} at index "
            f"{falls[0]}; a list cannot have a negative length: build them with np.cumsum of the lengths"
        )
    return array
