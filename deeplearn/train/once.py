"""A cache for what is dear to build: whoever asks while another thread builds it waits for that one."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def once(size: int) -> Callable[[F], F]:
    """Keeps the results for the last `size` different arguments, which must be hashable and go by position.

    Unlike functools.lru_cache it builds a result once even when two threads want it at the same time. An exception is
    raised in all of them, and not kept.
    """

    def decorate(build: F) -> F:
        kept: OrderedDict[Any, Future] = OrderedDict()
        lock = threading.Lock()

        @functools.wraps(build)
        def get(*key: Any) -> Any:
            with lock:
                mine = key not in kept
                future = kept.setdefault(key, Future())
                kept.move_to_end(key)
                while len(kept) > size:
                    kept.popitem(last=False)
            if mine:
                try:
                    future.set_result(build(*key))
                except BaseException as error:
                    with lock:
                        kept.pop(key, None)
                    future.set_exception(error)
            return future.result()

        return get

    return decorate
