"""Work on many items by several threads, with no more of them held than there are hands.

What is small is handed over in groups: to a thread and back takes as long as a mask of 200 x 200.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_AHEAD_FACTOR = 2
"""How many items a worker may have under way or done before the first of them is taken."""

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def groups_of(
    items: Iterable[_Item], weight_of: Callable[[_Item], int], *, most_weight: int, most_items: int
) -> Iterator[list[_Item]]:
    """Neighbours that are worked on together.

    Args:
        items: in the order of the groups.
        weight_of: how much an item is, in any unit.
        most_weight: of a group; an item that is more is a group by itself.
        most_items: of a group, at least 1.

    Yields:
        Groups of at least one item.

    Example:
        >>> list(groups_of([5, 3, 9, 1, 1, 1], lambda item: item, most_weight=8, most_items=2))
        [[5, 3], [9], [1, 1], [1]]
    """
    group: list[_Item] = []
    weight = 0
    for item in items:
        more = weight_of(item)
        if group and (weight + more > most_weight or len(group) == most_items):
            yield group
            group, weight = [], 0
        group.append(item)
        weight += more
    if group:
        yield group


def in_order(
    items: Iterable[_Item], work: Callable[[_Item], _Made], workers: int
) -> Iterator[_Made]:
    """What the work makes of each item, in the order of the items.

    Args:
        items: read as results are taken.
        work: called in other threads.
        workers: how many threads.

    Yields:
        One result per item. An exception of the work is raised in its place, and nothing new is
        begun after it.

    Example:
        >>> list(in_order([3, 1, 2], lambda number: number * number, workers=2))
        [9, 1, 4]
    """
    source = iter(items)
    waiting: deque[Future[_Made]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for item in islice(source, _AHEAD_FACTOR * workers - len(waiting)):
                    waiting.append(pool.submit(work, item))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
