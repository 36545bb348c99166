"""A chat server in this process. `answer(words, body)` says what it answers; faults come first, one for each request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from servers import Fault, Json


def reversed_words(words: str, body: Any) -> str:
    return words[::-1]


class ChatServer(ThreadingHTTPServer):
    """Speaks `/v1/chat/completions`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, answer: Callable[[str, Any], str] = reversed_words, *, key: str = "", slow: float = 0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.key, self.slow = answer, key, slow
        self.faults: list[Fault] = []
        self.fault_of: Callable[[int], Fault | None] = lambda number: None
        self.change: Callable[[Any], Any] = lambda said: said
        self.asked: list[Any] = []  # the bodies, as they came
        self.answered: list[str] = []  # the words that were answered
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are part of the tests."""


class Handler(Json):
    server: ChatServer
    inside = False  # it works on an ask

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(body)
            number = len(server.asked)
            server.at_once += 1
            self.inside = True
            server.most_at_once = max(server.most_at_once, server.at_once)
            fault = server.faults.pop(0) if server.faults else server.fault_of(number)
        try:
            self.respond(body, fault)
        finally:
            self.leave()

    def leave(self) -> None:
        """Count this ask as answered, once."""
        if self.inside:
            self.inside = False
            with self.server.lock:
                self.server.at_once -= 1

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.leave()  # before the answer goes out: the client may ask again the moment that it has it
        super().send(status, body, headers)

    def respond(self, body: Any, fault: Fault | None) -> None:
        server = self.server
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            return self.send(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
        if fault is not None:
            return fault(self) if callable(fault) else self.send(*fault)
        if body["model"] != "tiny":
            return self.send(404, {"error": {"message": "no such model"}})
        time.sleep(server.slow)
        words = body["messages"][-1]["content"]
        said = server.answer(words, body)
        with server.lock:
            server.answered.append(words)
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(words.split()), "completion_tokens": len(said.split())}
        self.send(200, server.change({"id": "1", "choices": [choice], "usage": usage}))


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the line without a word."""
    handler.connection.close()


def half(handler: BaseHTTPRequestHandler) -> None:
    """Promise more than is sent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    handler.connection.close()


BUSY: Fault = (429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.05"})
BROKEN: Fault = (500, b"oops", {})
GARBAGE: Fault = (200, b"<html>gateway</html>", {})
EMPTY: Fault = (200, b'{"choices": []}', {})
TWICE: Fault = (200, b'{"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}', {})
NOTHING: Fault = (200, b'{"choices": [{"message": {"content": null}}]}', {})
PASSING: tuple[Fault, ...] = (BUSY, BROKEN, GARBAGE, EMPTY, TWICE, NOTHING, hang_up, half)


@pytest.fixture
def chat_server() -> Iterator[Callable[..., ChatServer]]:
    made: list[ChatServer] = []

    def start(*args: Any, **settings: Any) -> ChatServer:
        made.append(ChatServer(*args, **settings))
        return made[-1]

    yield start
    for server in made:
        server.shutdown()
        server.server_close()
