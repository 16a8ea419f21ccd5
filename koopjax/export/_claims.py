"""What a file may claim: bounds on what its few bytes may ask for, checked before it is made.

A file of equal or nearly equal numbers is far smaller than its arrays, so the size of a file alone
bounds nothing. Up to `FLOOR` bytes are believed of any file, and `RATIO` more for each byte of it;
`export.save` fills up with zeros what would claim more.
"""

import math

FLOOR = 64 << 20
RATIO = 1024
#: Beside its bytes, for an entry that is decoded symbol by symbol: the time and room that it takes.
SYMBOL = 16
LAYERS_LIMIT = 256  # layers of a model, cores of a train
PARTS_LIMIT = 1 << 16  # dictionaries within one
DEPTH_LIMIT = 64  # lists within lists of a header


class Claims:
    """What is left of a file's allowance."""

    def __init__(self, size: int):
        self.total = self.left = FLOOR + RATIO * size

    def take(self, amount: int) -> None:
        """Take from what is left.

        Raises:
            IndexError: there is less.
        """
        if amount > self.left:
            raise IndexError(f"numbers of more than {self.total} bytes, which so few can't hold")
        self.left -= amount


def padding(claimed: int, size: int) -> bytes:
    """Zeros behind a body of some size, for a reader to believe what it claims."""
    return bytes(max(0, math.ceil((claimed - FLOOR) / RATIO) - size))


def sizes(numbers: object, limit: int, what: str) -> list[int]:
    """A list of counts from a header, each at least 0, at most so many of them."""
    if not isinstance(numbers, list | tuple) or len(numbers) > limit:
        raise IndexError(f"no list of at most {limit} {what}")
    return [count(n, what) for n in numbers]


def count(number: object, what: str, limit: int = 1 << 40) -> int:
    """A count from a header, at least 0 and at most a limit."""
    if type(number) is not int or not 0 <= number <= limit:
        raise IndexError(f"{what} of {number!r:.40}")
    return number
