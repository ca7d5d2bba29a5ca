"""Work in a thread of its own, read as an iterator."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")

POLL_SECONDS = 0.1
"""Between two looks at whether to stop."""


@dataclass(frozen=True, slots=True)
class _End:
    """What stands behind the last item: the error that ended the work, if one did."""

    error: BaseException | None


def in_background(work: Callable[[Callable[[Item], None]], Coroutine[Any, Any, None]]) -> Iterator[Item]:
    """What ``work(emit)`` emits, as it comes; then whatever it raises is raised here.

    The thread's loop is no matter to one that runs here already, as in a notebook. Closing the iterator cancels the
    work and waits until it has cleaned up.
    """
    items: SimpleQueue[Item | _End] = SimpleQueue()
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None] | None]] = Future()

    async def main() -> None:
        started.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        await work(items.put)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            items.put(_End(error))
        else:
            items.put(_End(None))

    thread = threading.Thread(target=run, name="klqlit-judge", daemon=True)
    thread.start()
    loop, task = started.result()
    assert task is not None
    try:
        while not isinstance(item := items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        with suppress(RuntimeError):  # the loop may have ended by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def with_grace(start: Callable[[], Iterator[Item]], stopping: threading.Event, grace: float) -> Iterator[Item]:
    """What an iterator gives until `grace` seconds after `stopping` was set; then it is waited for no longer.

    It is made and read in a thread of its own, and dropped, which closes a generator, as soon as it gives another item.
    """
    items: SimpleQueue[Item | _End] = SimpleQueue()
    dropped = threading.Event()

    def read() -> None:
        try:
            for item in start():
                items.put(item)
                if dropped.is_set():
                    break
        except BaseException as error:
            items.put(_End(error))
        else:
            items.put(_End(None))

    threading.Thread(target=read, name="klqlit-grace", daemon=True).start()
    deadline = float("inf")
    try:
        while True:
            if stopping.is_set():
                deadline = min(deadline, time.monotonic() + grace)
            try:
                item = items.get(timeout=max(0.0, min(POLL_SECONDS, deadline - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline:
                    return
                continue
            if isinstance(item, _End):
                break
            yield item
        if item.error is not None:
            raise item.error
    finally:
        dropped.set()
