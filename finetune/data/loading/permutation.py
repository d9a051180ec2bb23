"""A shuffled order that is computed where it is asked for, not stored."""

import numpy as np
import numpy.typing as npt

from finetune.data.table.cells import Integers

_ROUNDS = 8
_Words = npt.NDArray[np.uint64]


class KeyedPermutation:
    """A permutation of the numbers from 0 to N - 1 that a key decides, in memory that does not depend on N.

    A Feistel network of 8 rounds permutes the smallest numbers of an even number of bits that hold N, and a result
    that is too large is permuted again until it is not (cycle walking; Black and Rogaway 2002, Ciphers with Arbitrary
    Finite Domains, CT-RSA). A round's function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA). All
    of it is integer arithmetic, so the order is the same on every machine.

    Args:
        length: N, at least 1.
        key: Numbers of at least 0, such as seed and epoch.

    Example:
        >>> permutation = KeyedPermutation(10, [0, 1])
        >>> sorted(permutation[np.arange(10)].tolist()) == [*range(10)]
        True
    """

    def __init__(self, length: int, key: list[int]) -> None:
        self.length = length
        self._half = np.uint64(max(1, -(-(length - 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def __getitem__(self, positions: Integers) -> Integers:
        """Returns what stands at some positions.

        Args:
            positions: Int64 array of any shape, from 0 to N - 1.

        Returns:
            Int64 array of the same shape.
        """
        found = self._permute(positions.astype(np.uint64))
        while (is_outside := found >= self.length).any():
            found[is_outside] = self._permute(found[is_outside])
        return found.astype(np.int64)

    def _permute(self, words: _Words) -> _Words:
        left, right = words >> self._half, words & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return left << self._half | right


def _mix(words: _Words) -> _Words:
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
