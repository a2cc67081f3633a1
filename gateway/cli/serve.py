"""`slo-gateway serve`: run the gateway, from a file or from one line."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from pathlib import Path

import click

from gateway.config.asked import GRAMMAR, Asked, Over

BAD_CONFIG, USAGE = 78, 2
MAX_LOOK = 4 * 1024**2  # characters; as many bytes as a file may have


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--port", type=click.IntRange(0, 65535), help="Port for applications; 0 picks a free one.")
@click.option("--host", help="Address for applications.  [default: 127.0.0.1]")
@click.option("--admin-port", type=click.IntRange(0, 65535), help="Port for operators.")
@click.option("--model", help="What applications ask for, when there is no FILE.")
@click.option("--pool", "pools", multiple=True, metavar=GRAMMAR, help="A pool of engines, when there is no FILE; may be given again.")
@click.option("--mode", type=click.Choice(["enforce", "observe"]), help="observe: measure everything, hold back and refuse nothing.")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes that serve on one port.")
@click.option("--state", metavar="URL", help="Redis or Valkey that several gateways share: redis://HOST:PORT.")
def command(
    file: str | None,
    port: int | None,
    host: str | None,
    admin_port: int | None,
    model: str | None,
    pools: tuple[str, ...],
    mode: str | None,
    workers: int | None,
    state: str | None,
) -> None:
    """Run the gateway.

    \b
    With a file:      slo-gateway serve config/gateway.yaml
    Without one:      slo-gateway serve --model M --pool premium:H100=http://a:8000,http://b:8000 --pool cost:A10:limit=32=http://c:8000

    A file that changes is taken over while the gateway runs (so is one after SIGHUP); a wrong one is refused, and the old one goes on.
    """
    from gateway.serve.reader import Reader

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    for quiet in ("httpx", "httpcore", "asyncio", "uvicorn.error"):  # the last says everything twice: there are two ports
        logging.getLogger(quiet).setLevel(logging.WARNING)
    log = logging.getLogger("slo_gateway")
    if file is not None and (model or pools):
        raise click.UsageError("give a FILE, or --model and --pool, not both")
    if file is None and bool(model) != bool(pools):
        raise click.UsageError("without a FILE, --model and at least one --pool are needed")

    over = Over(port=port, host=host, admin_port=admin_port, mode=mode, workers=workers, state=state)
    reader = Reader(Asked(file, model, pools, over))
    read = reader.begin()
    from gateway.config.loaded import ConfigError, is_loopback

    importlib.import_module("gateway.serve.process" if _alone(file, workers) else "gateway.serve.supervisor")  # in the meantime
    try:
        loaded = read()
    except ConfigError as error:
        for finding in error.findings:
            click.echo(str(finding), err=True)
        sys.exit(BAD_CONFIG)
    reload = None if model else reader
    settings = loaded.settings
    if not settings.keys and not is_loopback(settings.listen.host):
        log.warning("no keys are configured and %s is not loopback: everybody who can connect may use the GPUs", settings.listen.host)

    def ready(public: int, admin: int) -> None:
        log.info(
            "ready: http://%s:%d/v1 (%s), admin http://%s:%d/admin/",
            settings.listen.host,
            public,
            settings.mode.value,
            settings.admin.host,
            admin,
        )

    changed = FileWatch(loaded.path) if reload is not None else None
    try:
        if settings.workers == 1:
            from gateway.serve.process import run

            status = run(loaded, reload, changed, ready)
        else:
            from gateway.serve.own_store import NoServer
            from gateway.serve.supervisor import run as run_together

            try:
                status = run_together(loaded, reload, changed, ready)
            except NoServer as error:
                click.echo(f"workers: {error}", err=True)
                sys.exit(BAD_CONFIG)
    except OSError as error:
        click.echo(f"cannot listen on {settings.listen.host}:{settings.listen.port} or {settings.admin.port}: {error.strerror}", err=True)
        sys.exit(USAGE)
    sys.exit(status)


def _alone(file: str | None, workers: int | None) -> bool:
    """Will this process serve by itself? A look from afar, before the file is read: a wrong guess costs some time or memory."""
    if workers is not None or file is None:
        return workers in (None, 1)
    try:
        with open(file, encoding="utf-8", errors="replace") as text:
            return re.search(r"^workers: *([2-9]|\d\d)", text.read(MAX_LOOK), re.MULTILINE) is None
    except OSError:
        return True


class FileWatch:
    """Has the file changed since it was last asked? By what the file system says of it, and only once it has settled."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known = self._stat()
        self._seen = self._known

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            stat = os.stat(self._path) if self._path is not None else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat is not None else None

    def __call__(self) -> bool:
        now = self._stat()
        settled = now == self._seen
        self._seen = now
        if now is None or now == self._known or not settled:
            return False
        self._known = now
        return True
