"""An event loop in a thread of its own, read as an iterator."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")


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
