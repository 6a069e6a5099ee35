"""Whoever means ill tries the studio over HTTP: without a login, from another site, with files and folders that are none of theirs."""

import http.client
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.app import guard
from anomalydiffusion.app.studio import close, studio
from anomalydiffusion.core.pixels import encode_png
from tests.flows.test_flow import _data

SECRET = "what nobody outside may read"
WORDS = {"data": [], "fn_index": 0, "session_hash": "somebody"}  # as a page asks for work


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _served(run: Path, **given: Any) -> Iterator[httpx.Client]:
    port = _port()
    page = studio(run, port=port, wait=False, **given)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield client
    finally:
        close(page)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("guard")
    _data(base / "data")
    (base / "secret.png").write_bytes(encode_png(np.full((8, 8, 3), 77, np.uint8)))
    (base / "secret.txt").write_text(SECRET)
    return base


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[httpx.Client]:
    """A studio that only this machine reaches."""
    yield from _served(folder / "alone", data=folder / "data")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[httpx.Client]:
    """A studio that asks for a login, and a client that has logged in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "LOCKED", 86400.0)  # however slow this machine is
        for client in _served(folder / "shared", data=folder / "data", auth="anna:right"):
            assert client.post("/login", data={"username": "anna", "password": "right"}).status_code == 200
            yield client


@pytest.fixture(scope="module")
def stranger(shared: httpx.Client) -> Iterator[httpx.Client]:
    """Somebody at the same studio who has not logged in."""
    with httpx.Client(base_url=shared.base_url, timeout=120) as client:
        yield client


def _asked(client: httpx.Client, name: str, *words: Any) -> str:
    """What the studio answers to work that is asked for by its name, in whatever words."""
    asked = client.post(f"/gradio_api/call/{name}", json={"data": list(words)})
    if asked.status_code != 200:
        return str(asked.text)
    return str(client.get(f"/gradio_api/call/{name}/{asked.json()['event_id']}").text)


def _sent(client: httpx.Client, name: str, content: bytes) -> dict[str, Any]:
    """Upload a file; how it is named in what is asked for."""
    (path,) = client.post("/gradio_api/upload", files={"files": (name, content)}).json()
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("path", ["config", "gradio_api/info", "gradio_api/openapi.json", "gradio_api/queue/status",
                                  "gradio_api/queue/data", "gradio_api/heartbeat/x", "gradio_api/file={}/secret.txt",
                                  "gradio_api/stream/a/b/1/playlist.m3u8",
                                  "gradio_api/upload_progress", "gradio_api/runs", "monitoring/summary"])  # fmt: skip
def test_nothing_is_told_to_who_has_not_logged_in(stranger: httpx.Client, folder: Path, path: str) -> None:
    with stranger.stream("GET", f"/{path.format(folder)}") as told:  # some have no end, where they are heard
        assert told.status_code == 401 and SECRET not in told.read().decode()


@pytest.mark.parametrize("path", ["queue/join", "call/on_look", "run/on_look", "upload", "component_server", "cancel", "reset", "stream/x",
                                  "vibe-edit", "vibe-code", "run-history/connect"])  # fmt: skip
def test_nothing_is_done_for_who_has_not_logged_in(stranger: httpx.Client, path: str) -> None:
    assert stranger.post(f"/gradio_api/{path}", json=WORDS).status_code == 401


def test_the_page_asks_for_a_login_and_shows_nothing_before(stranger: httpx.Client, shared: httpx.Client, folder: Path) -> None:
    before, after = stranger.get("/"), shared.get("/")
    assert before.status_code == after.status_code == 200
    assert "auth_required" in before.text and "After 5 wrong passwords" in before.text
    assert str(folder) not in before.text and "on_export" not in before.text
    assert str(folder / "data") in after.text  # so that it would have been seen


@pytest.mark.parametrize(
    ("headers", "line"),
    [
        ({"Host": "evil.example"}, "is not served as 'evil.example'"),  # a name that was made to point here
        ({"Host": "localhost.evil.example:7860"}, "is not served as"),
        ({"Origin": "http://evil.example"}, "a page of another site"),
        ({"Origin": "null"}, "a page of another site"),
        ({"Origin": "http://127.0.0.1:1"}, "a page of another site"),  # another program of this machine
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "a page of another site"),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, "a page of another site"),
    ],
)
def test_other_sites_are_refused(alone: httpx.Client, headers: dict[str, str], line: str) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/login"):
        refused = alone.post(path, json=WORDS, headers=headers)
        assert refused.status_code == 403 and line in refused.json()["detail"]
    assert alone.get("/gradio_api/info", headers=headers).status_code == 403


def test_the_studio_itself_is_heard_and_not_framed(alone: httpx.Client, shared: httpx.Client) -> None:
    own = str(alone.base_url).rstrip("/")
    for headers in ({"Origin": own}, {"Sec-Fetch-Site": "same-origin", "Origin": own}, {"Host": "localhost"}):
        assert alone.post("/gradio_api/cancel", json={**WORDS, "event_id": "x"}, headers=headers).status_code == 200
    followed = alone.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})  # a link to it
    assert followed.status_code == 200 and followed.headers["content-security-policy"] == "frame-ancestors 'none'"
    named = {"Host": "studio.example", "Origin": "https://studio.example"}  # by a proxy; there is a login
    assert shared.post("/gradio_api/cancel", json={**WORDS, "event_id": "x"}, headers=named).status_code == 200
    assert shared.post("/gradio_api/cancel", json=WORDS, headers={**named, "Origin": "https://evil.example"}).status_code == 403


def test_no_file_of_the_machine_is_handed_out(shared: httpx.Client, folder: Path) -> None:
    picture = encode_png(np.full((8, 8, 3), 99, np.uint8))
    sent = _sent(shared, "own.png", picture)
    assert shared.get(f"/gradio_api/file={sent['path']}").content == picture
    here = str(Path(sent["path"]).parent)
    for path in (f"{folder}/secret.txt", f"{folder}/shared/studio/.lock", f"{here}/../../../../../../../..{folder}/secret.txt",
                 "/etc/passwd", "pyproject.toml", "file:///etc/passwd", f"{here}/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "http://127.0.0.1:1/x",
                 "http://example.org/", f"/..{folder}/secret.txt"):  # fmt: skip
        told = shared.get(f"/gradio_api/file={path}")
        assert told.status_code in (403, 404) and SECRET not in told.text, path
    for elsewhere in (folder / "secret.png", Path(here) / ".." / ".." / "secret.png"):
        told = _asked(shared, "on_upload", {**sent, "path": str(elsewhere)})
        assert "event: error" in told and "background" not in told
    fetched = shared.post("/gradio_api/call/on_upload", json={"data": [{**sent, "path": "https://example.org/x.png"}]})
    assert fetched.status_code == 403 and "fetches nothing from elsewhere" in fetched.text


def test_fields_lead_nowhere_else(shared: httpx.Client, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for name in ("../up", f"{folder}/abs", "a/b", "..", ".", "", "a\0b", "x" * 300):
        assert "give a plain name, without folders" in _asked(shared, "on_export", "mvtec", 1, "synthetic", name), name
    (folder / "other").mkdir()
    assert "plate" in _asked(shared, "on_look", str(folder / "other"))  # its own data all the same
    (folder / "other").rmdir()
    assert "is not in the list of choices" in _asked(shared, "on_normal", "plate/hole", str(folder / "secret.png"))
    canvas = _sent(shared, "canvas.png", encode_png(np.full((20, 30, 3), 90, np.uint8)))
    Image.fromarray(np.full((20, 30, 4), 255, np.uint8)).save(folder.parent / "layer.png")
    painted = {"background": canvas, "layers": [_sent(shared, "layer.png", (folder.parent / "layer.png").read_bytes())], "composite": None}
    for product, defect in (
        ("../plate", "hole"),
        ("plate", "../../hole"),
        ("/abs", "hole"),
        ("plate", "a\0b"),
        (".git", "hole"),
        ("", "hole"),
    ):
        told = _asked(shared, "on_save", product, defect, None, canvas, "is the mask", painted)
        assert "give a plain name, without folders" in told, (product, defect, told)
    for field in ("background", "layers"):
        stolen = {**canvas, "path": str(folder / "secret.png")}
        forged = {**painted, field: [stolen] if field == "layers" else stolen}
        assert "event: error" in _asked(shared, "on_save", "plate", "hole", None, canvas, "is the mask", forged)
    assert sorted(folder.rglob("*")) == before


def _header(width: int, height: int) -> bytes:
    """The first bytes of a picture of such a size, most of whose pixels do not come."""
    out = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(1000))):
        out += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return out


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (_header(20_000, 10_000), "too many pixels"),
        (_header(12_000, 12_000), "too many pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "cannot be read as a picture"),
        (b"MZ\x90\x00" + bytes(200), "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n", "cannot be read as a picture"),
        (b"", "the file is empty"),
    ],
    ids=["200 megapixels", "144 megapixels", "svg", "program", "postscript", "nothing"],
)
def test_what_is_no_picture_or_too_large_a_one_is_refused_in_words(alone: httpx.Client, content: bytes, line: str) -> None:
    sent = _sent(alone, "picture.png", content)
    told = _asked(alone, "on_upload", sent)
    assert "event: error" in told and line in told
    assert "event: error" in _asked(
        alone, "on_save", "plate", "hole", None, sent, "is the mask", {"background": sent, "layers": [], "composite": None}
    )
    shown = alone.get(f"/gradio_api/file={sent['path']}")
    assert shown.headers["content-type"] == "image/png" and shown.headers["x-content-type-options"] == "nosniff"


def test_too_much_at_once_is_refused_before_it_is_read(alone: httpx.Client) -> None:
    line = http.client.HTTPConnection(alone.base_url.host, alone.base_url.port, timeout=120)
    line.putrequest("POST", "/gradio_api/upload")
    for name, value in (("Content-Type", "multipart/form-data; boundary=x"), ("Content-Length", str(guard.MOST_UPLOAD + 1))):
        line.putheader(name, value)
    line.endheaders()
    answer = line.getresponse()
    assert answer.status == 413 and b"too large: at most 65 MB" in answer.read()
    line.close()
    assert alone.post("/gradio_api/queue/join", json={**WORDS, "data": ["x" * guard.MOST_WORDS]}).status_code == 413
    pieces = (b" " * 2**18 for _ in range(6))  # whose sum is not told before
    assert alone.post("/gradio_api/queue/join", content=pieces).status_code == 413


def test_too_many_requests_have_to_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REQUESTS", 40)
    monkeypatch.setattr(guard, "SPAN", 86400.0)
    for client in _served(folder / "flooded", data=folder / "data"):
        told = [client.get("/gradio_api/app_id") for _ in range(45)]
        assert told[0].status_code == 200 and told[-1].status_code == 429
        assert "too many requests; try again in" in told[-1].json()["detail"] and 0 < int(told[-1].headers["retry-after"]) <= guard.SPAN
        other = {"X-Forwarded-For": "203.0.113.9"}  # somebody else, through a proxy of this machine
        assert client.get("/gradio_api/app_id", headers=other).status_code == 200
        monkeypatch.setattr(guard, "OPEN", 1)
        with client.stream("GET", "/gradio_api/heartbeat/x", headers=other) as kept:
            assert kept.status_code == 200
            more = client.get("/gradio_api/app_id", headers=other)
            assert more.status_code == 429 and "too many requests at once" in more.text


def test_who_guesses_passwords_has_to_wait(stranger: httpx.Client, shared: httpx.Client) -> None:
    def tried(password: str, address: str) -> httpx.Response:
        given = {"username": "anna", "password": password}
        return stranger.post("/login", data=given, headers={"X-Forwarded-For": address})

    assert [tried("wrong", "203.0.113.1").status_code for _ in range(6)] == [400] * 5 + [429]
    late = tried("right", "203.0.113.1")
    assert late.status_code == 429 and "too many wrong logins; try again in" in late.json()["detail"]
    assert not late.cookies and 0 < int(late.headers["retry-after"]) <= guard.LOCKED
    assert tried("right", "203.0.113.2").status_code == 200
    assert tried("right", "2001:db8::1").status_code == 200
    assert [tried("wrong", f"2001:db8::{number}").status_code for number in range(2, 8)] == [400] * 5 + [429]  # one subscriber
    many = [tried("wrong", f"198.51.100.{number}").status_code for number in range(guard.ALL_LOGINS)]
    assert many[0] == 400 and many[-1] == 429
    assert tried("right", "198.51.100.200").status_code == 429
    assert shared.get("/config").status_code == 200  # who is in stays in


def test_a_pace_is_kept_by_each_and_forgotten_in_time() -> None:
    now = [0.0]
    pace = guard.Pace(2, 10.0, lambda: now[0])
    assert [pace.take("a"), pace.take("a"), pace.take("a"), pace.take("b")] == [0, 0, 10, 0]
    now[0] = 4.0
    assert pace.take("a") == 6 and pace.take("b") == 0
    now[0] = 10.0
    assert pace.take("a") == 0 and list(pace.counts) == ["a"]
    pace.take("a")
    pace.forget("a")
    assert pace.take("a") == 0
