"""One HTTP server that is asked for JSON: tried again where that helps, and one line for what went wrong.

The client is Python's own: huggingface_hub brings httpx or, since its version 2, httpx2, so neither can be relied on.
The key is read from the environment when the server is first spoken of, goes into one header and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..core.run import RunError

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between attempts, doubled each time
PATIENCE = 600.0  # seconds that a server may ask to wait


class Address(Protocol):
    """Where a server is and how patiently it is asked."""

    @property
    def url(self) -> str:
        """Up to the version: http://host:8000/v1."""
        ...

    @property
    def key_env(self) -> str | None:
        """The environment variable that holds the API key."""
        ...

    @property
    def timeout(self) -> float:
        """Seconds without an answer."""
        ...

    @property
    def retries(self) -> int:
        """Of a request that failed in passing."""
        ...


def check_address(url: str, key_env: str | None) -> None:
    """ValueError for an address that holds a secret or is none, and for a key where its variable's name belongs."""
    try:
        parts = urlsplit(url)
        secret = parts.username is not None or parts.password is not None or parts.query or parts.fragment
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
    except ValueError:
        secret, fine = False, False
    if secret or not fine:  # never repeated: it may hold a password
        raise ValueError("the url must look like http://host:8000/v1, without a user, a password or a query")
    if key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key_env):
        raise ValueError("key_env is the name of an environment variable, in capitals, and never the key itself")


def short(said: Any) -> str:
    """Anything a server said as one short line."""
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:117]}..."


class Refused(Exception):
    """The server answered with a 4xx that is not about the key, the load or the way there."""

    def __init__(self, status: int, words: str):
        super().__init__(f"{status} {words}")
        self.status, self.words = status, words


class NoAnswer(RunError):
    """Every attempt failed in passing: the server is away, overloaded, or cannot answer this."""


class Garbled(Exception):
    """An answer arrived and cannot be used; another attempt may bring a better one."""


class _Passing(Exception):
    """It may go better next time, in `wait` seconds or later."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """No request."""


class Server:
    """Posts JSON, again where that helps, and says in one line what went wrong. Safe to share between threads."""

    def __init__(self, spec: Address, on_wait: Callable[[float], None] = lambda seconds: None):
        """`on_wait` is told how long the server asked to wait whenever a request failed in passing."""
        self.on_wait = on_wait
        self.spec, self.host = spec, urlsplit(spec.url).hostname or ""
        self.name = spec.url.rstrip("/")
        self._root = re.sub(r"/v1$", "", self.name)
        handlers: list[Any] = [_NoRedirect()]
        if self.host == "localhost" or self.host.startswith("127.") or self.host == "::1":
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)
        self._key = os.environ.get(spec.key_env, "").strip() if spec.key_env else ""
        if not all("!" <= c <= "~" for c in self._key):  # http.client would repeat it in its error
            raise RunError(f"the API key in {spec.key_env} has characters that no key has; set it again")

    def post(
        self, path: str, body: Mapping[str, Any], stop: threading.Event, read: Callable[[Any], Any] | None = None
    ) -> Any:
        """The answer to one request as plain values; Refused for what the caller may understand, else RunError.

        With `read` what it makes of the answer; where it raises Garbled, or the answer is no JSON, it is asked again.
        """
        url = self._root + path if path.startswith("/") else f"{self.name}/{path}"
        data = json.dumps(body).encode()
        for attempt in range(self.spec.retries + 1):
            try:
                raw = self._send(url, data)
                return self._json(raw) if read is None else self._read(raw, read)
            except _Passing as error:
                why, wait = str(error), error.wait
                self.on_wait(wait)
            if wait > PATIENCE:
                raise RunError(f"{self.name} asks to wait {wait:,.0f} s ({why}); the same command goes on later")
            pause = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
            if attempt < self.spec.retries and stop.wait(wait + pause):
                break
        else:
            tries = f"{self.spec.retries + 1} attempts" if self.spec.retries else "one attempt"
            raise NoAnswer(
                f"{self.name} did not answer after {tries}: {why}; is the server running? The same command goes on"
            )
        raise RunError("stopped")  # the caller has gone

    def models(self) -> list[str]:
        """What the server says it serves, if it does."""
        try:
            listed = self._json(self._send(f"{self.name}/models", None))["data"]
            return [str(each["id"]) for each in listed][:5]
        except (RunError, Refused, _Passing, LookupError, TypeError):
            return []

    def _send(self, url: str, data: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "stillhouse"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(url, data, headers)
        try:
            with self._opener.open(request, timeout=self.spec.timeout) as answer:
                raw = answer.read()
            return raw.replace(self._key.encode(), b"***") if len(self._key) >= 8 else raw
        except urllib.error.HTTPError as error:
            status, asked = error.code, error.headers.get("Retry-After")
            try:
                with error:
                    words = self._words(error.read(2**16))
            except (OSError, http.client.HTTPException):
                words = "no reason given"
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from None
        if status in (401, 403):
            where = f"the environment variable {self.spec.key_env}" if self.spec.key_env else "--key-env VARIABLE"
            what = "refuses the API key in" if self._key else "wants an API key: give it in"
            raise RunError(f"{self.name} {what} {where} ({status})")
        if 300 <= status < 400:
            raise RunError(f"{self.name} sends requests elsewhere ({status}), which would take the key along; give that url")
        if status in (408, 409, 425, 429) or (status >= 500 and status not in (501, 505) and "supported" not in words):
            raise _Passing(f"{status} {words}", retry_after(asked, time.time()))
        raise Refused(status, words)

    def _lost(self, error: Exception) -> Exception:
        """A request without an answer: to be tried again, unless that cannot help."""
        cause = getattr(error, "reason", error)
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            return RunError(f"there is no host {self.host}: is the url right?")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RunError(f"no safe connection to {self.name}: {short(str(cause))}")
        if isinstance(cause, TimeoutError):
            return _Passing(f"no answer within {self.spec.timeout:g} s (raise timeout, or lower concurrency)")
        return _Passing(short(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__))

    def _json(self, raw: bytes) -> Any:
        try:
            return json.loads(raw)
        except ValueError:
            raise RunError(f"{self.name} answered with something else than JSON: {self._words(raw)!r}") from None

    def _read(self, raw: bytes, read: Callable[[Any], Any]) -> Any:
        try:
            return read(json.loads(raw))
        except (ValueError, Garbled) as error:
            what = str(error) if isinstance(error, Garbled) else f"something else than JSON: {self._words(raw)!r}"
            raise _Passing(f"it answered with {what}") from None

    def without_key(self, text: str) -> str:
        """The text with *** in the key's place."""
        return text.replace(self._key, "***") if self._key else text

    def _words(self, raw: bytes) -> str:
        """The server's reason in one short line; if it repeats the key, without it."""
        text = raw.decode("utf-8", "replace")
        try:
            told: Any = json.loads(text)
            told = told.get("error", told) if isinstance(told, Mapping) else told
            for name in ("message", "detail"):
                told = told.get(name, told) if isinstance(told, Mapping) else told
        except ValueError:
            told = text
        said = told if isinstance(told, str) else json.dumps(told)
        said = " ".join(self.without_key(said).split())
        return (said if len(said) <= 300 else f"{said[:297]}...") or "no reason given"


def retry_after(asked: str | None, now: float) -> float:
    """Seconds from `now` that a Retry-After header asks to wait: a number, or a date. 0 if it says neither."""
    if not asked:
        return 0.0
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return 0.0
