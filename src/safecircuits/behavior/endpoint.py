"""Any server that speaks OpenAI's chat format as a callable from text to text: a judge for whoever runs one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from safecircuits.base.arguments import whole
from safecircuits.base.processes import of_main
from safecircuits.behavior.retrying import Patience, connections


class Endpoint:
    """Asks ``<url>/chat/completions`` one question at a time, greedily; nothing is sent anywhere else.

    Published judges whose template has its model's own turn markers are asked through ``<url>/completions``. A server
    that is busy (429, 503, 529) is asked again, after as long as its ``Retry-After`` says or twice as long each time.

    Args:
        url: of the server's API, such as ``http://localhost:8000/v1``.
        model: the name that the server knows it by.
        key_from: the environment variable that holds the key, if the server wants one. A key is never written down.
        max_tokens: of a reply.
        timeout: in seconds, for one reply.
        retries: how often a busy server is asked again at most; one that asks for more than two minutes is not.
        extra: more fields of the request, such as ``{"seed": 0}``.

    Raises:
        ValueError: for a URL that is not http(s), or a variable that is not set.

    Examples:
        >>> Endpoint("http://localhost:8000/v1", "judge")
        Endpoint(http://localhost:8000/v1, 'judge')
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_from: str | None = None,
        max_tokens: int = 64,
        timeout: float = 60.0,
        retries: int = 5,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"the endpoint's URL is {url!r}, expected one such as 'http://localhost:8000/v1'")
        if key_from is not None and not os.environ.get(key_from):
            raise ValueError(f"the environment variable {key_from!r}, which holds the endpoint's key, is not set")
        self.url, self.model, self.key_from = url.rstrip("/"), model, key_from
        self.max_tokens, self.timeout, self.extra = max_tokens, timeout, dict(extra or {})
        self.retries = whole(retries, "retries", 0)
        self.__name__ = f"{model} at {self.url}"

    def __repr__(self) -> str:
        return f"Endpoint({self.url}, {self.model!r})"

    def __call__(self, question: str) -> str:
        """The reply's text.

        Raises:
            RuntimeError: if there is none: the server does not answer in time, refuses, or replies in another format.
        """
        return self.converse([{"role": "user", "content": question}])

    def converse(self, messages: Sequence[Mapping[str, str]], max_tokens: int | None = None) -> str:
        """The reply to a conversation, with a system message or answers in it; raises as a call does.

        Args:
            messages: with ``role`` and ``content``.
            max_tokens: of this reply.
        """
        answered = self._post("chat/completions", {"messages": list(messages)}, max_tokens)
        return self._text(answered, "message", "content")

    def complete(self, text: str, max_tokens: int | None = None) -> str:
        """What goes on after a text that has its model's turn markers, by ``<url>/completions``; raises as a call does.

        Args:
            text: goes to the model as it stands.
            max_tokens: of this reply.
        """
        return self._text(self._post("completions", {"prompt": text}, max_tokens), "text")

    def _post(self, path: str, asked: Mapping[str, Any], max_tokens: int | None) -> Any:
        limit = self.max_tokens if max_tokens is None else max_tokens
        body = {"model": self.model, **asked, "max_tokens": limit, "temperature": 0, **self.extra}
        headers = {"Content-Type": "application/json"}
        if self.key_from is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.key_from]}"
        # Of several processes one asks, and one pays.
        return of_main(lambda: self._reply_to(f"{self.url}/{path}", json.dumps(body).encode(), headers))

    def _reply_to(self, url: str, body: bytes, headers: Mapping[str, str]) -> Any:
        patience = Patience.of(self.retries)
        try:
            reply = connections(self.url).request(
                "POST", url, body=body, headers=headers, timeout=self.timeout, retries=patience, redirect=False
            )
        except HTTPError as error:
            raise RuntimeError(f"{self.url} gives no reply within {self.timeout:g} s: {error}") from error
        if reply.status >= 300:
            raise RuntimeError(f"{self.url} answers {_said(reply)}")
        try:
            return json.loads(reply.data)
        except ValueError as error:
            raise RuntimeError(f"{self.url} replies with something that is no JSON: {error}") from error

    def _text(self, answered: Any, *place: str) -> str:
        try:
            text = answered["choices"][0]
            for key in place:
                text = text[key]
        except (KeyError, IndexError, TypeError) as error:
            raise RuntimeError(
                f"{self.url} replies without choices[0].{'.'.join(place)}: {str(answered)[:300]}"
            ) from error
        if not isinstance(text, str):
            raise RuntimeError(f"{self.url} replies with no text: {str(answered)[:300]}")
        return text


def _said(reply: BaseHTTPResponse) -> str:
    """Status, how often it was asked, how long it wants to be left alone, and the beginning of what it says."""
    asked = 1 + len(reply.retries.history if reply.retries else ())
    tries = f" ({asked} times)" if asked > 1 else ""
    wait = reply.headers.get("Retry-After")
    later = "" if wait is None else f", to be asked again after {wait}"
    return f"{reply.status} {reply.reason}{tries}{later}: {reply.data[:300].decode(errors='replace')}"
