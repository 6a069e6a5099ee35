"""The web page of one run: its tabs, and who may reach it."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.progress import say
from anomalydiffusion.app.tabs.batch import batch_tab
from anomalydiffusion.app.tabs.data import data_tab
from anomalydiffusion.app.tabs.draw import draw_tab
from anomalydiffusion.app.tabs.export import export_tab
from anomalydiffusion.app.tabs.learn import learn_tab
from anomalydiffusion.app.tabs.looks import CSS, KEYS, THEME
from anomalydiffusion.app.tabs.parts import Live, gr, told
from anomalydiffusion.app.tabs.proof import proof_tab
from anomalydiffusion.app.tabs.review import review_tab
from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.names import placed_at
from anomalydiffusion.core.runs import hold

__all__ = ["build", "close", "studio"]

UPLOAD = "64mb"  # a file
WAITING = 32  # requests for work that may wait for their turn
SWEPT, KEPT = 3600, 86400  # seconds: uploads are looked at so often, and thrown away when so old
OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def build(desk: Desk, *, movable: bool = True) -> Any:
    """The page of a desk. `movable`: its user may name other folders of this machine."""
    with gr.Blocks(title="anomalydiffusion studio", analytics_enabled=False, delete_cache=(SWEPT, KEPT)) as page:
        gr.Markdown(f"# anomalydiffusion studio\n`{desk.folder.name}`")
        with gr.Tabs():
            data_tab(desk, movable)
            live = learn_tab(desk)
            draw_tab(desk)
            live += batch_tab(desk)
            review_tab(desk)
            proof_tab(desk)
            export_tab(desk, movable)
        state = gr.Textbox(label="Work", interactive=False, elem_id="job-state")
        lines = gr.Textbox(label="What it says", lines=3, max_lines=12, interactive=False, elem_id="job-lines")
        live += [Live(part=state, read=desk.jobs.says), Live(part=lines, read=desk.jobs.prints)]
        shown = gr.State([])  # by this page

        @told
        def tick(before: list[Any]) -> tuple[Any, ...]:
            now = [each.read() for each in live]
            old = before or [None] * len(live)
            return now, *(gr.skip() if was == new and before else each.show(new) for each, was, new in zip(live, old, now, strict=True))

        gr.Timer(2.0).tick(tick, shown, [shown, *(each.part for each in live)], show_progress="hidden")
        page.load(tick, shown, [shown, *(each.part for each in live)])
        for each in page.fns.values():
            each.api_visibility = "private"  # else the page describes all of it even to who has not logged in
    return page


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def studio(
    run: Path | str = "run", *, data: Path | str | None = None, host: str = "127.0.0.1", port: int = 7860, auth: str | None = None,
    wait: bool = True,
) -> Any:  # fmt: skip
    """Serve the page for one run, which need not exist yet; with `wait` until it is interrupted, else it is returned, to be closed.

    `auth` is "user:password", and must be given for a `host` that others can reach; who must log in may not name folders. Without, the
    page answers to this machine's own names alone. What else is refused: `app.guard`. While it is served, this process opens no picture of
    more than 100 megapixels. Raises `ConfigError` for that, `RunError` where the port is taken or another studio works on this run.
    """
    from starlette.middleware import Middleware  # comes with gradio, whose absence was told by now

    from anomalydiffusion.app.guard import LOCKED, LOGINS, Guard, bounded_pictures

    run = Path(run).resolve()
    if ":" in host:
        raise ConfigError(f"--host {host}: the page is not served under IPv6; give an IPv4 address or a name, such as 127.0.0.1")
    if not _loopback(host) and auth is None:
        raise ConfigError(f"--host {host}: others can reach that; give --auth USER:PASSWORD too")
    if auth is not None and not all(auth.partition(":")[::2]):
        raise ConfigError("--auth: expected USER:PASSWORD")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RunError(f"{host}:{port}: cannot be used ({error.strerror}); give another --port") from error
    (run / "studio").mkdir(parents=True, exist_ok=True)
    desk = Desk(run, placed_at(data) if data else None)
    page = build(desk, movable=_loopback(host) and auth is None)
    guard = Middleware(Guard, hosts=OWN_NAMES | {host} if auth is None else frozenset(), login=auth is not None)
    with ExitStack() as held:
        held.enter_context(hold(run / "studio" / ".lock", f"{run}: another studio is open on this run; use that, or close it"))
        held.enter_context(desk.jobs.tended())
        held.enter_context(bounded_pictures())
        _, address, _ = page.queue(default_concurrency_limit=1, max_size=WAITING, api_open=False).launch(
            server_name=host, server_port=port, auth=tuple(auth.split(":", 1)) if auth else None, quiet=True, prevent_thread_lock=True,
            auth_message=f"After {LOGINS} wrong passwords, logging in has to wait for {LOCKED / 60:g} minutes.",
            share=False, inbrowser=False, show_error=True, max_file_size=UPLOAD, footer_links=[], ssr_mode=False, css=CSS, head=KEYS,
            run_history=False, enable_monitoring=False, app_kwargs={"middleware": [guard]},
            theme=THEME,
        )  # fmt: skip
        say(f"studio: {address}")
        if wait:
            page.block_thread()
        else:
            page.held = held.pop_all()  # until `close`
    return page


def close(page: Any) -> None:
    """Stop serving a page that `studio` returned; what it started goes on."""
    page.close(verbose=False)
    page.held.close()
