"""How many pictures are divided among several runs: each belongs to one shard, whatever else lies beside it.

The shard follows from a picture's name alone: below the folder that was named, with `/`. So runs on several machines,
at different times, with the folder mounted elsewhere, agree without asking each other; together they take every picture
once, and a picture that arrives between two of them changes nothing for the others.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from vae_edge.errors import UsageError

MAX_SHARDS = 10**6


def shard_of(name: str, n_shards: int) -> int:
    """Return the shard that a picture belongs to, from 1 to `n_shards`.

    It is the BLAKE2b hash (RFC 7693) of 8 bytes of the name in UTF-8, as a big-endian number, modulo the number of
    shards, plus one. Bytes of a name that is not UTF-8 count as they are.

    Examples:
        >>> [shard_of(f"left/{number}.png", 4) for number in range(6)]
        [1, 4, 2, 1, 4, 1]
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % n_shards + 1


@dataclass(frozen=True)
class Shard:
    """One of several shards: the third of eight is `3/8`."""

    number: int
    """From 1."""
    n_shards: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse `I/N`.

        Raises:
            UsageError: it is something else, or I is not from 1 to N.

        Examples:
            >>> Shard.parse("3/8")
            Shard(number=3, n_shards=8)
        """
        found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]) <= MAX_SHARDS:
            raise UsageError(
                f"{text!r} is not a shard; expected I/N with I from 1 to N, such as 3/8, and N at most {MAX_SHARDS}"
            )
        return cls(int(found[1]), int(found[2]))

    def has(self, name: str) -> bool:
        """Return whether the picture of that name belongs to it; see `shard_of`."""
        return shard_of(name, self.n_shards) == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.n_shards}"
