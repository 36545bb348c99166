"""One HTTP server that is asked for JSON: tried again where that helps, and one line for what went wrong.

Connections are kept open from one request to the next (urllib3), as many as there are threads that ask.
Keys are read from the environment when the server is first spoken of, go into one header and nowhere else. Of several
they take turns; one that the server refuses is not used again, and one that it limits rests while the others work.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, SSLError
from urllib3.exceptions import TimeoutError as TimedOut

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
    def key_env(self) -> str | Sequence[str] | None:
        """The environment variable that holds the API key, or several."""
        ...

    @property
    def timeout(self) -> float:
        """Seconds without an answer."""
        ...

    @property
    def retries(self) -> int:
        """Of a request that failed in passing."""
        ...


def check_address(url: str, key_env: str | Sequence[str] | None) -> None:
    """ValueError for an address that holds a secret or is none, and for a key where its variable's name belongs."""
    try:
        parts = urlsplit(url)
        secret = parts.username is not None or parts.password is not None or parts.query or parts.fragment
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
    except ValueError:
        secret, fine = False, False
    if secret or not fine:  # never repeated: it may hold a password
        raise ValueError("the url must look like http://host:8000/v1, without a user, a password or a query")
    names = variables(key_env)
    if not all(re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) for name in names) or len(set(names)) < len(names):
        raise ValueError("key_env names an environment variable, or several, in capitals, and is never the key itself")


def variables(key_env: str | Sequence[str] | None) -> list[str]:
    """The environment variables, one or several."""
    return [] if key_env is None else [key_env] if isinstance(key_env, str) else list(key_env)


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


class Later(RunError):
    """The server asks to wait for longer than anybody should."""


class Garbled(Exception):
    """An answer arrived and cannot be used; another attempt may bring a better one."""


class _Passing(Exception):
    """It may go better next time, in `wait` seconds or later."""

    def __init__(self, why: str, wait: float = 0.0, limited: bool = False):
        super().__init__(why)
        self.wait, self.limited = wait, limited  # limited: the key has asked too often


class _KeyRefused(Exception):
    """The server does not take this key, or wants one."""

    def __init__(self, status: int):
        super().__init__(str(status))
        self.status = status


class _Key:
    """One API key; it is never part of a text."""

    def __init__(self, variable: str):
        self.variable, self.value = variable, os.environ.get(variable, "").strip()
        self.rests, self.strikes, self.refused = 0.0, 0, 0  # until when; times limited in a row; the status that refused it
        if not all("!" <= c <= "~" for c in self.value):  # http.client would repeat it in its error
            raise RunError(f"the API key in {variable} has characters that no key has; set it again")


class Server:
    """Posts JSON, again where that helps, and says in one line what went wrong. Safe to share between threads."""

    def __init__(self, spec: Address, on_wait: Callable[[float], None] = lambda seconds: None):
        """`on_wait` is told how long the server asked to wait whenever a request failed in passing."""
        self.on_wait = on_wait
        self.spec, self.host = spec, urlsplit(spec.url).hostname or ""
        self.name = spec.url.rstrip("/")
        self._root = re.sub(r"/v1$", "", self.name)
        self._pool = _pool(spec.url, getattr(spec, "concurrency", 1), spec.timeout)
        keys = [_Key(variable) for variable in variables(spec.key_env)]
        self._keys = [key for key in keys if key.value] or keys[:1]
        self._secrets = sorted({key.value for key in self._keys if key.value}, key=len, reverse=True)  # none within another
        self._turn, self._lock = 0, threading.Lock()

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
                raise Later(f"{self.name} asks to wait {wait:,.0f} s ({why}); the same command goes on later")
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
        """The body of the answer; with the next key at once where one was refused or limited and another can be used."""
        while True:
            if (wait := self._rest()) > 0:
                raise _Passing("every API key is limited now", wait)
            key = self._next_key()
            try:
                return self._sent(url, data, key)
            except _Passing as error:
                if key is None or not error.limited or len(self._keys) == 1:
                    raise
                with self._lock:
                    if key.rests <= time.monotonic():  # those in flight with the same key are no further strikes
                        pause = min(LONGEST_WAIT, FIRST_WAIT * 2**key.strikes)
                        key.rests, key.strikes = time.monotonic() + max(error.wait, pause), key.strikes + 1
                if (wait := self._rest()) > 0:
                    raise _Passing(str(error), wait) from None
            except _KeyRefused as error:
                if key is not None:
                    key.refused = error.status
                if key is None or all(each.refused for each in self._keys):
                    raise RunError(self._refusal(error.status, key)) from None

    def _next_key(self) -> _Key | None:
        """The one whose turn it is among those that can be used now; of several, those that are set."""
        with self._lock:
            known = [key for key in self._keys if not key.refused] or self._keys
            if not known:
                return None
            now = time.monotonic()
            ready = [key for key in known if key.rests <= now] or known
            self._turn += 1
            return ready[self._turn % len(ready)]

    def _rest(self) -> float:
        """Seconds until a key can be used."""
        with self._lock:
            rests = [key.rests for key in self._keys if not key.refused]
            return max(0.0, min(rests, default=0.0) - time.monotonic())

    def _refusal(self, status: int, key: _Key | None) -> str:
        names = variables(self.spec.key_env)
        plural = "s" if len(names) > 1 else ""
        where = f"the environment variable{plural} {', '.join(names)}" if names else "--key-env VARIABLE"
        what = f"refuses the API key{plural} in" if key is not None and key.value else "wants an API key: give it in"
        return f"{self.name} {what} {where} ({status})"

    def _sent(self, url: str, data: bytes | None, key: _Key | None) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "stillhouse"}
        if key is not None and key.value:
            headers["Authorization"] = f"Bearer {key.value}"
        try:
            answer = self._pool.request("GET" if data is None else "POST", url, body=data, headers=headers, redirect=False)
        except (HTTPError, OSError) as error:
            raise self._lost(error) from None
        status, raw = answer.status, answer.data
        if status < 300:
            if key is not None:
                key.strikes = 0
            for secret in self._secrets:
                raw = raw.replace(secret.encode(), b"***") if len(secret) >= 8 else raw
            return raw
        asked, words = answer.headers.get("Retry-After"), self._words(raw[: 2**16])
        if status in (401, 403):
            raise _KeyRefused(status)
        if 300 <= status < 400:
            raise RunError(f"{self.name} sends requests elsewhere ({status}), which would take the key along; give that url")
        if status in (408, 409, 425, 429) or (status >= 500 and status not in (501, 505) and "supported" not in words):
            raise _Passing(f"{status} {words}", retry_after(asked, time.time()), limited=status == 429)
        raise Refused(status, words)

    def _lost(self, error: Exception) -> Exception:
        """A request without an answer: to be tried again, unless that cannot help."""
        cause = error.__cause__ or next((part for part in error.args if isinstance(part, Exception)), error)
        if isinstance(error, NameResolutionError) and getattr(cause, "errno", None) != socket.EAI_AGAIN:
            return RunError(f"there is no host {self.host}: is the url right?")
        if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return RunError(f"no safe connection to {self.name}: {short(str(cause))}")
        if isinstance(error, TimedOut | TimeoutError) and not isinstance(error, NewConnectionError):
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
        """The text with *** in every key's place."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

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


def _pool(url: str, connections: int, timeout: float) -> urllib3.PoolManager:
    """Connections to a server, through the proxy that the environment names if it is not this machine.

    No redirect is followed: it would take the key to another host.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    near = host in ("localhost", "::1") or host.startswith("127.") or urllib.request.proxy_bypass(host)
    proxy = None if near else urllib.request.getproxies().get(parts.scheme)
    options: dict[str, Any] = {
        "maxsize": connections, "timeout": urllib3.Timeout(connect=timeout, read=timeout), "retries": False,
    }  # fmt: skip
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


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
