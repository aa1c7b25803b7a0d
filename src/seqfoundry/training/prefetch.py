"""Batches that a thread reads ahead, so that a GPU need not wait for them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Batch = TypeVar("_Batch")


def prefetch(
    read: Callable[[_Item], _Batch], items: Iterable[_Item], count: int
) -> Iterator[_Batch]:
    """Yield ``read(item)`` of each item, in order.

    A thread reads up to ``count`` batches ahead; with 0 there is no thread.
    """
    if not count:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        waiting: deque[Future[_Batch]] = deque()
        for item in items:
            waiting.append(thread.submit(read, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        for batch in waiting:
            yield batch.result()
