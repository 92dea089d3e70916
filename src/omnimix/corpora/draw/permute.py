"""A random order of n rows that is computed where it is read: no list of n numbers, whatever n is.

A Feistel network of keyed rounds permutes the pairs (a, b), a and b of h bits, 4^h >= n; results beyond n are sent
through it again until they lie below n (cycle walking, fewer than 4 passes on average). Source: Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", CT-RSA 2002. The order is well mixed, not secret.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 6
_ADD, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def permuted(place: np.ndarray, n: int | np.ndarray, *key: int | np.ndarray) -> np.ndarray:
    """The rows at the places (any shape, 0..n-1) of the random order of 0..n-1 that the numbers `key` name; int64.

    n, key: numbers, or arrays of the shape of `place` for places in several orders.
    """
    size = np.broadcast_to(np.asarray(n, dtype=np.int64), place.shape).ravel()
    row = place.ravel()
    if (np.asarray(n) < 1).any() or ((row < 0) | (row >= size)).any():
        raise ValueError(f"places must lie in 0..{np.max(n) - 1}, below their n")
    sizes, which = np.unique(size, return_inverse=True)
    bits = [max(1, ((one - 1).bit_length() + 1) // 2) for one in sizes.tolist()]
    half, keys = np.array(bits, dtype=np.uint64)[which], _keys(key, place.shape)
    bound = size.astype(np.uint64)
    row = _rounds(row.astype(np.uint64), half, keys)
    beyond = np.flatnonzero(row >= bound)
    while len(beyond):
        row[beyond] = _rounds(row[beyond], half[beyond], keys[:, beyond])
        beyond = beyond[row[beyond] >= bound[beyond]]
    return row.astype(np.int64).reshape(place.shape)


def _rounds(value: np.ndarray, half: np.ndarray, keys: np.ndarray) -> np.ndarray:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & low
    for key in keys:
        mixed = _mixed(right + key)
        mixed &= low
        mixed ^= left
        left, right = right, mixed
    joined: np.ndarray = (left << half) | right
    return joined


def _mixed(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit moves every output bit."""
    mixed: np.ndarray = value >> np.uint64(30)
    mixed ^= value
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _keys(key: tuple[int | np.ndarray, ...], shape: tuple[int, ...]) -> np.ndarray:
    """(rounds, places) the keys of every place."""
    state = np.zeros(1, dtype=np.uint64)
    for number in key:
        one = number.ravel().astype(np.uint64) if isinstance(number, np.ndarray) else np.uint64(number % 2**64)
        state = _mixed(state + _ADD + one)
    keys = _mixed(state + _ADD * np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None])
    return np.broadcast_to(keys, (ROUNDS, int(np.prod(shape))))
