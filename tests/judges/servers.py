"""Chat endpoints on loopback for tests: real HTTP, scripted faults, and a judge that reads between the fences.

As a program (see `counting_words`): a judge that counts words and answers after 50 ms, until its input is closed.
"""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """What a server sends back.

    Attributes:
        body: as it is sent.
        status: of the answer.
        headers: further ones.
        delay: seconds before it.
        missing: bytes that the length announces and that never come.
        pause: seconds after each byte.
    """

    body: str
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0
    missing: int = 0
    pause: float = 0.0


def say(text, *, finish_reason="stop", delay=0.0):
    """A chat completion with this text."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
    return Answer(json.dumps(body), delay=delay)


def refuse(status, message="no", **headers):
    """An error."""
    return Answer(json.dumps({"error": {"message": message}}), status=status, headers=headers)


def fenced(text):
    """Both responses in a filled template: by the boundary that its instructions announce, and no other."""
    mark = re.search(r'"\[([0-9a-f]{16})"', text)[1]
    sides = [rf"^\[{mark} RESPONSE {side}\]\n(.*?)\n\[{mark} END OF RESPONSE {side}\]$" for side in "AB"]
    found = [re.findall(side, text, re.DOTALL | re.MULTILINE) for side in sides]
    assert [len(texts) for texts in found] == [1, 1], "a fence is broken"
    return found[0][0], found[1][0]


def longer_wins(text):
    """The verdict of a judge that counts words, with both responses quoted before it."""
    first, second = fenced(text)
    one, other = len(first.split()), len(second.split())
    letter = "TIE" if one == other else "A" if one > other else "B"
    return f"Response A reads:\n{first}\nResponse B reads:\n{second}\nI counted words.\n\nVerdict: {letter}"


class JudgeServer:
    """An endpoint in a thread.

    Args:
        answer: takes the text that was asked and how many requests came before; returns what is sent, or a text.

    Attributes:
        asked: the text of every request, in order.
        requests: the bodies of all requests.
        headers: their headers, in lower case.
        most: the most requests that were under way at once.
    """

    def __init__(self, answer: Callable[[str, int], Answer | str]):
        self.answer = answer
        self.asked, self.requests, self.headers = [], [], []
        self.most = self._under_way = 0

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=512))
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *error):
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _close(self):
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self._under_way += 1
                self.most = max(self.most, self._under_way)
                try:
                    whole = await self._answer(head[0], headers, body, writer)
                finally:
                    self._under_way -= 1
                if not whole:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, first_line, headers, body, writer):
        assert first_line.startswith("POST /v1/chat/completions "), first_line
        text = body["messages"][-1]["content"]
        self.asked.append(text)
        self.requests.append(body)
        self.headers.append(headers)
        answer = self.answer(text, len(self.asked) - 1)
        answer = say(answer) if isinstance(answer, str) else answer
        await asyncio.sleep(answer.delay)
        payload = answer.body.encode()
        fields = {"content-type": "application/json", "content-length": len(payload) + answer.missing} | answer.headers
        lines = [f"HTTP/1.1 {answer.status} Scripted", *(f"{name}: {value}" for name, value in fields.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        for part in [payload[i : i + 1] for i in range(len(payload))] if answer.pause else [payload]:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(answer.pause)
        return not answer.missing


@contextmanager
def counting_words():
    """A server in a process of its own, where it takes no time from the client: its base_url, then what it counted."""
    found = {}
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        found["base_url"] = process.stdout.readline().strip()
        yield found
        found |= json.loads(process.communicate()[0])


if __name__ == "__main__":
    with JudgeServer(lambda text, i: say(longer_wins(text), delay=0.05)) as server:
        print(server.base_url, flush=True)
        sys.stdin.read()
        print(json.dumps({"asked": len(server.asked), "most": server.most}))
