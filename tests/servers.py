"""A server in this process that answers as vLLM, SGLang and the legacy OpenAI endpoint do, from a real tiny Llama."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from language import Folders

Fault = tuple[int, bytes, dict[str, str]] | Callable[[BaseHTTPRequestHandler], Any]


class Fake(ThreadingHTTPServer):
    """One served model. `speaks` is the form it knows; `most` its limit of log-probabilities."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path, speaks: str = "vllm", *, port: int = 0, most: int = 64):
        super().__init__(("127.0.0.1", port), Handler)
        from stillhouse.models.hub import load_model, load_tokenizer

        self.model, self.tokenizer, self.lock = load_model(str(folder)), load_tokenizer(str(folder)), threading.Lock()
        self.speaks, self.most, self.key = speaks, most, ""
        self.faults: list[Fault] = []
        self.change: Callable[[Any], Any] = lambda answer: answer
        self.asked: list[tuple[str, Any]] = []
        self.dies_after = 10**9
        self.slow = 0.0
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are part of the tests."""

    def logprobs(self, ids: list[int]) -> Any:
        import torch

        with self.lock, torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def table(self, ids: list[int], k: int) -> list[dict[int, float] | None]:
        """As vLLM says it: the token itself first, then the k likeliest."""
        told: list[dict[int, float] | None] = [None]
        for t, row in enumerate(self.logprobs(ids)[:-1]):
            values, index = row.topk(k)
            own = ids[t + 1]
            told.append({own: float(row[own])} | dict(zip(index.tolist(), values.tolist(), strict=True)))
        return told


class Json(BaseHTTPRequestHandler):
    """Answers with JSON, silently."""

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(raw))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)


class Handler(Json):
    server: Fake

    def error(self, status: int, message: str) -> None:
        self.send(status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}})

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [{"id": "tiny"}, {"id": "other"}]})

    def do_POST(self) -> None:
        fake = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.asked.append((self.path, body))
        if len(fake.asked) > fake.dies_after:
            self.connection.close()
            return
        if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
            return self.error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        if fake.faults:
            fault = fake.faults.pop(0)
            return fault(self) if callable(fault) else self.send(*fault)
        time.sleep(fake.slow)
        if self.path == "/v1/completions":
            return self.completion(body)
        if self.path == "/generate" and fake.speaks == "sglang":
            return self.generate(body)
        self.send(404, {"detail": "Not Found"})

    def completion(self, body: Any) -> None:
        fake, ids = self.server, body["prompt"]
        if body["model"] != "tiny":
            return self.error(404, f"The model `{body['model']}` does not exist.")
        assert isinstance(ids, list) and all(isinstance(i, int) for i in ids) and body["temperature"] == 0
        asked = body.get("prompt_logprobs") if fake.speaks in ("vllm", "vllm-rust") else None
        echoed = body.get("logprobs") if body.get("echo") and fake.speaks in ("vllm-echo", "token_id", "strings") else None
        if max(asked or 0, echoed or 0) > fake.most:
            which = "prompt" if asked else "sample"
            return self.error(
                400, f"Requested {which} logprobs of {asked or echoed}, which is greater than max allowed: {fake.most}"
            )
        if fake.speaks == "openai" and "prompt_logprobs" in body:
            return self.error(400, "Unrecognized request argument supplied: prompt_logprobs")
        if fake.speaks == "openai":
            return self.error(400, "Invalid value for 'logprobs': must be less than or equal to 5.")
        if fake.speaks == "llama.cpp" and body.get("echo"):
            return self.send(500, {"error": {"code": 500, "message": "Only no echo is supported", "type": "server_error"}})
        choice: dict[str, Any] = {"index": 0, "text": "x", "logprobs": None, "finish_reason": "length"}
        if asked:
            rust = fake.speaks == "vllm-rust" and body["return_tokens_as_token_ids"]
            told = [
                None
                if row is None
                else {self.name(i) if rust else str(i): v if rust else self.entry(i, v) for i, v in row.items()}
                for row in fake.table(ids, asked)
            ]
            choice["prompt_logprobs"] = told
        if echoed:
            name = self.name if body.get("return_tokens_as_token_ids") and fake.speaks != "strings" else self.text
            top = [None if row is None else {name(i): v for i, v in row.items()} for row in fake.table(ids, echoed)]
            tokens = [name(i) for i in ids]
            if body["max_tokens"]:
                top.append({name(3): -0.5})
                tokens.append(name(3))
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": [], "text_offset": [], "top_logprobs": top}
        self.send(200, fake.change({"id": "cmpl-1", "object": "text_completion", "model": "tiny", "choices": [choice]}))

    def generate(self, body: Any) -> None:
        fake, ids, k = self.server, body["input_ids"], body["top_logprobs_num"]
        assert body["return_logprob"] and body["logprob_start_len"] == 0 and body["sampling_params"]["temperature"] == 0
        top: list[Any] = [None]
        own: list[Any] = [[None, ids[0], None]]
        for t, row in enumerate(fake.logprobs(ids)[:-1]):
            values, index = row.topk(k)
            top.append([[v, i, None] for v, i in zip(values.tolist(), index.tolist(), strict=True)])
            own.append([float(row[ids[t + 1]]), ids[t + 1], None])
        meta = {"prompt_tokens": len(ids), "input_token_logprobs": own, "input_top_logprobs": top}
        self.send(200, fake.change({"text": "", "output_ids": [], "meta_info": meta}))

    def entry(self, index: int, value: float) -> dict[str, Any]:
        return {"logprob": value, "rank": 1, "decoded_token": self.text(index)}

    def name(self, index: int) -> str:
        return f"token_id:{index}"

    def text(self, index: int) -> str:
        return self.server.tokenizer.decode([index]) if index < 300 else ""


@pytest.fixture
def serve(folders: Folders) -> Iterator[Callable[..., Fake]]:
    made: list[Fake] = []

    def start(speaks: str = "vllm", folder: Path | None = None, **settings: Any) -> Fake:
        made.append(Fake(folder or folders.teacher, speaks, **settings))
        return made[-1]

    yield start
    for fake in made:
        fake.shutdown()
        fake.server_close()
