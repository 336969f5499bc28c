"""Commands for boards: carrying a bundle there, and letting it be carried."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmflow.cli import calls
from tvmflow.cli.options import BundlePath, Json, Key, Threads, Tracker
from tvmflow.cli.outcome import show_report


def deploy(
    bundle: BundlePath,
    ssh: Annotated[
        str | None, typer.Option("--ssh", help="The board: user@host, or a name of your SSH configuration.")
    ] = None,
    rpc: Annotated[bool, typer.Option("--rpc", help="Through `tvmflow serve` there, in place of the runner.")] = False,
    host: Annotated[
        str | None,
        typer.Option("--host", help="127.0.0.1:PORT of `tvmflow serve`, or of a tunnel to it; implies --rpc."),
    ] = None,
    tracker: Tracker = None,
    key: Key = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="The server's token, for --host and --tracker.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Of `tvmflow serve`, for --ssh with --rpc.")] = 9090,
    to: Annotated[
        str | None, typer.Option("--to", help="Folder on the board; one of its own in .cache by default.")
    ] = None,
    ssh_config: Annotated[Path | None, typer.Option("--ssh-config", help="In place of ~/.ssh/config.")] = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long to time steady runs there.")] = 3.0,
    sustained: Annotated[
        str | None, typer.Option("--sustained", help="30m, say: time for so long, and watch clock and temperature.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="With --rpc: also time each layer, in another run.")
    ] = False,
    json: Json = None,
) -> None:
    """Carry a bundle to a board, verify and time it there.

    Over SSH alone, the bundle's own runner does it (`build --runner c`) and nothing has to be installed on the board.
    With --rpc, TVM there does it, in a session of `tvmflow serve`.
    """
    found = calls.deploy(
        bundle,
        ssh,
        rpc=rpc,
        host=host,
        tracker=tracker,
        key=key,
        token_file=token_file,
        port=port,
        to=to,
        ssh_config=ssh_config,
        threads=threads,
        seconds=seconds,
        sustained=sustained,
        profile=profile,
    )
    show_report(found.document, json, layers=profile)


def serve(
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 9090,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Made if it isn't there; in ~/.config/tvmflow by default.")
    ] = None,
    session_seconds: Annotated[
        float, typer.Option("--session-seconds", min=1, help="What a session may take.")
    ] = 600.0,
    memory_mib: Annotated[
        int, typer.Option("--memory-mib", min=0, help="Address space of a session; 0 for no limit, as a GPU needs.")
    ] = 2048,
    tracker: Tracker = None,
    key: Key = "",
) -> None:
    """On a board: let `tvmflow deploy --rpc` and TVM's RPC clients in, through SSH and with a token."""
    from tvmflow.remote import serve as server
    from tvmflow.system import progress

    limits = server.Limits(
        seconds=session_seconds, cpu_seconds=int(8 * session_seconds), memory_bytes=(memory_mib << 20) or None
    )
    with progress.own_line():  # a server waits most of the time, and says when something happens
        server.serve(token_file or server.default_token_file(), port=port, limits=limits, tracker=tracker, key=key)
