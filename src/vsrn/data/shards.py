"""Which photos are shard i of n, and where its store is: what batch queues and `vsrn extract --merge` agree on.

out/shards/02-of-12/train_ims.npy ...    a region store like any other, of one block of the photos
out/shards/02-of-12/train_shard.json     its `SplitHeader`: which block of which list, by which extractor
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from vsrn.errors import ConfigError

SHARDS = "shards"
SHARD_FILE = "_shard.json"

_FOLDER = re.compile(r"([0-9]+)-of-([0-9]+)")
_OPTION = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block of a list of photos; these four numbers say which.

    number      from 1
    of          how many shards the list is cut into
    batch_size  photos that the extractor is given at a time
    num_photos  length of the whole list
    """

    number: int
    of: int
    batch_size: int
    num_photos: int

    def block(self) -> slice:
        """Its places in the list. Blocks are disjoint, contiguous, complete, and within one batch as long.

        They are cut between batches, never within one: a network's last bits depend on which photos it is
        given together, and the joined shards must be what one process would have written.

        >>> [Shard(number, 3, batch_size=2, num_photos=9).block() for number in (1, 2, 3)]
        [slice(0, 2, None), slice(2, 6, None), slice(6, 9, None)]
        """
        batches = -(-self.num_photos // self.batch_size)
        start, stop = (batches * number // self.of * self.batch_size for number in (self.number - 1, self.number))
        return slice(min(start, self.num_photos), min(stop, self.num_photos))


def parse_shard(option: str) -> tuple[int, int]:
    """`i/n` -> (i, n). Raises `ConfigError` unless 1 <= i <= n.

    >>> parse_shard("3/16")
    (3, 16)
    """
    match = _OPTION.fullmatch(option)
    if match is None:
        raise ConfigError(f"--shard is '{option}'; write it as i/n, for instance 3/16.")
    number, of = int(match[1]), int(match[2])
    refuse_shard(number, of)
    return number, of


def refuse_shard(number: int, of: int) -> None:
    """Raise `ConfigError` unless 1 <= number <= of."""
    if not 1 <= number <= of:
        raise ConfigError(f"--shard is {number}/{of}; the first of {of} shards is 1/{of} and the last {of}/{of}.")


def shard_folder(store: Path | str, number: int, of: int) -> Path:
    """The region store of one shard, below that which it will be merged into.

    >>> shard_folder("out", 2, 12).as_posix()
    'out/shards/02-of-12'
    """
    return Path(store) / SHARDS / f"{number:0{len(str(of))}}-of-{of}"


def shard_of_folder(folder: Path) -> tuple[int, int] | None:
    """(number, of) of a folder that `shard_folder` names, or None for any other.

    >>> shard_of_folder(Path("out/shards/02-of-12")), shard_of_folder(Path("out/shards/2-of-12"))
    ((2, 12), None)
    """
    match = _FOLDER.fullmatch(folder.name)
    if match is None:
        return None
    number, of = int(match[1]), int(match[2])
    return (number, of) if 1 <= number <= of and folder.name == shard_folder("", number, of).name else None
