"""What stands between the studio and the network: whose requests come in, how large, how many, and how often one may try to log in."""

from __future__ import annotations

import ipaddress
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from PIL import EpsImagePlugin, Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LOCKED", "LOGINS", "Guard", "Pace", "bounded_pictures"]

MEGABYTE = 2**20
MOST_UPLOAD, MOST_WORDS = 65 * MEGABYTE, MEGABYTE  # of a request with a file, with what stands around that; of any other
MOST_PIXELS = 100_000_000  # of a picture from outside
REQUESTS, SPAN = 6000, 60.0  # of one address, in so many seconds: leafing through pairs quickly takes a third
OPEN = 64  # requests of one address under way at once; a page keeps two
LOGINS, LOCKED = 5, 300.0  # wrong ones of one address, in so many seconds
ALL_LOGINS = 50  # of all addresses together: somebody may have many
API = "/gradio_api/"
UPLOADS = ("upload", "component_server")  # routes that take files
OPEN_DOORS = ("startup-events", "login_check", "user", "token", "app_id", "theme.css")  # what a page asks for before anyone has logged in
HEADERS = ((b"content-security-policy", b"frame-ancestors 'none'"), (b"x-content-type-options", b"nosniff"))


class Pace:
    """Counts things by a key: at most `most` of one key in `seconds`, from its first on."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self.clock = most, seconds, clock
        self.counts: dict[str, tuple[float, int]] = {}  # when the first came, and how many
        self.swept = clock()

    def take(self, key: str) -> float:
        """Count one more. Returns 0, or the seconds to wait where it is one too many, which is not counted."""
        now = self.clock()
        if now - self.swept >= self.seconds:
            self.counts, self.swept = {each: own for each, own in self.counts.items() if now - own[0] < self.seconds}, now
        began, count = self.counts.get(key, (now, 0))
        if now - began >= self.seconds:
            began, count = now, 0
        if count >= self.most:
            return began + self.seconds - now
        self.counts[key] = began, count + 1
        return 0.0

    def forget(self, key: str) -> None:
        self.counts.pop(key, None)


class Guard:
    """ASGI middleware that refuses, in one line each, what no page of the studio would ask for.

    `hosts`: the names that it is served under; none = any. `login`: somebody must have logged in, on each route but those that lead there.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], login: bool) -> None:
        self.app, self.hosts, self.login = app, hosts, login
        self.pace, self.tries, self.all_tries = Pace(REQUESTS, SPAN), Pace(LOGINS, LOCKED), Pace(ALL_LOGINS, LOCKED)
        self.under_way: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, who = Request(scope), _address(scope)
        logs_in = self.login and request.method == "POST" and scope["path"].rstrip("/") == "/login"

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
                if logs_in and message["status"] == 200:
                    self.tries.forget(who)
            await send(message)

        try:
            with self._counted(who):
                self._admit(request, who, logs_in)
                await self.app(scope, await _bounded(request, receive), headed)
        except HTTPException as refused:
            await JSONResponse({"detail": refused.detail}, refused.status_code, refused.headers)(scope, receive, headed)

    @contextmanager
    def _counted(self, who: str) -> Iterator[None]:
        """One more request that is under way. Raises where that is one too many."""
        if self.under_way[who] >= OPEN:
            raise _later("too many requests at once; close other pages of the studio", 1)
        self.under_way[who] += 1
        try:
            yield
        finally:
            self.under_way[who] -= 1
            if not self.under_way[who]:
                del self.under_way[who]

    def _admit(self, request: Request, who: str, logs_in: bool) -> None:
        """Raises where a request is not to be heard."""
        if wait := self.pace.take(who):
            raise _later("too many requests", wait)
        host = _name(request.headers.get("host", ""))
        if self.hosts and host not in self.hosts:
            raise HTTPException(403, f"the studio is not served as {host!r}; open it as localhost, or start it with --auth USER:PASSWORD")
        if _foreign(request):
            raise HTTPException(403, "this was sent by a page of another site; open the studio itself")
        if "://" in request.scope["path"]:
            raise HTTPException(403, "the studio fetches nothing from elsewhere")
        if self.login and _guarded(request.scope["path"]) and not _known(request):
            raise HTTPException(401, "log in first")
        if logs_in and (wait := self.tries.take(who) or self.all_tries.take("")):
            raise _later("too many wrong logins", wait)


def _later(what: str, wait: float) -> HTTPException:
    seconds = math.ceil(wait)
    return HTTPException(429, f"{what}; try again in {seconds} s", {"Retry-After": str(seconds)})


def _address(scope: Scope) -> str:
    """Whose request it is; the addresses of one IPv6 subscriber are one."""
    client = scope.get("client")
    with suppress(ValueError):
        if client and ipaddress.ip_address(client[0]).version == 6:
            return str(ipaddress.ip_network(f"{client[0]}/64", strict=False))
    return str(client[0]) if client else ""


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def _foreign(request: Request) -> bool:
    """Whether another site's page sends this: browsers tell, in headers that no page can write."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site in ("same-origin", "none"):
        return False
    if site is not None:  # a link to the studio may be followed
        followed = request.method == "GET" and request.scope["path"] == "/" and request.headers.get("sec-fetch-mode") == "navigate"
        return not followed
    with suppress(ValueError):
        return origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    return True


def _guarded(path: str) -> bool:
    return path.startswith(API) and path.removeprefix(API).rstrip("/") not in OPEN_DOORS


def _known(request: Request) -> bool:
    """Whether whoever sends this has logged in: gradio asks that itself, but not on every route."""
    app = request.app
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(request.cookies.get(name) in app.tokens for name in names)


async def _bounded(request: Request, receive: Receive) -> Receive:
    """The body, of which no more is heard than it may be long; of what is no upload, it is read here, and may name no file elsewhere."""
    files = request.scope["path"].removeprefix(API).rstrip("/") in UPLOADS
    most = MOST_UPLOAD if files and request.headers.get("content-type", "").startswith("multipart/") else MOST_WORDS
    with suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > most:
            raise _large(most)
    count = 0

    async def counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > most:
            raise _large(most)
        return message

    if most == MOST_UPLOAD or request.method in ("GET", "HEAD", "OPTIONS"):
        return counted
    messages = [await counted()]
    while messages[-1].get("more_body", False):
        messages.append(await counted())
    with suppress(ValueError, RecursionError):  # what cannot be read here, gradio cannot read either
        if _fetches(json.loads(b"".join(message.get("body", b"") for message in messages))):
            raise HTTPException(403, "the studio fetches nothing from elsewhere; upload the picture")

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return again


def _large(most: int) -> HTTPException:
    return HTTPException(413, f"too large: at most {most // MEGABYTE} MB at once")


def _fetches(words: Any) -> bool:
    """Whether words that were sent name a file by an address, from which gradio would get it."""
    left = [words]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            if "://" in str(each.get("path", "")):
                return True
            left.extend(each.values())
        elif isinstance(each, list):
            left.extend(each)
    return False


@contextmanager
def bounded_pictures() -> Iterator[None]:
    """For the time of the block, let no picture take all of this process's memory, nor another program be started to draw it.

    Gradio opens what is sent to an editor as whatever kind of picture it says that it is.
    """
    before = Image.MAX_IMAGE_PIXELS, EpsImagePlugin.gs_binary
    Image.MAX_IMAGE_PIXELS, EpsImagePlugin.gs_binary = MOST_PIXELS // 2, False  # twice as many raise
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, EpsImagePlugin.gs_binary = before
