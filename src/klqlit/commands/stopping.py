"""Ending on a signal without losing what is under way."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from klqlit.judges.protocol import JudgingInterrupted

PATIENCE = 20.0
"""Seconds for what is under way to come in: less than a cluster waits between SIGTERM and SIGKILL."""

WORDS = b"\nklqlit: stopping when what was asked is answered; the same signal again stops at once\n"


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT (Ctrl-C) or SIGTERM sets. A second one, or `PATIENCE` seconds, end the block at once.

    Raises:
        SystemExit: the block was ended by a signal; with status 128 plus its number, as shells have it.
    """
    stopping, received = threading.Event(), list[int]()
    if threading.current_thread() is not threading.main_thread():
        # Signals come to the main thread, and whoever began others decides what becomes of them.
        yield stopping
        return
    main = threading.main_thread().ident
    assert main is not None
    limit = threading.Timer(PATIENCE, lambda: signal.pthread_kill(main, signal.SIGINT))
    limit.daemon = True

    def handle(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        received.append(number)
        stopping.set()
        limit.start()
        os.write(sys.stderr.fileno(), WORDS)  # `print` may be what the signal interrupted

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    except (JudgingInterrupted, KeyboardInterrupt) as error:
        print(f"klqlit: stopped: {str(error) or 'what was judged is kept; run again to go on'}", file=sys.stderr)
        raise SystemExit(128 + received[0]) from None
    finally:
        limit.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
