"""The commands beside those of a run, the demo, the web page and this machine: words -> one call -> print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomalydiffusion.app.options import AsJson, Compile, Config, Debug, Device, Dtype, OnlyTable, Preset, Quiet, offered, print_json

__all__ = ["tools_app"]

tools_app = typer.Typer()


@tools_app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where it goes (default: demo-run, demo-quick or demo-data).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps and pairs, in a minute or two: the way, not the quality.")] = False,
    data_only: Annotated[bool, typer.Option("--data-only", help="Only draw the demo's data set, as a folder to begin from.")] = False,
    quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """The whole job on the bundled demo data with the bundled prior, offline, on a CPU."""
    from anomalydiffusion.app.demo import demo as call

    typer.echo(call(output, quick=quick, data_only=data_only, quiet=quiet))


@tools_app.command()
def studio(
    run: Annotated[Path, typer.Argument(help="The run's folder; need not be there yet.")] = Path("run"),
    data: Annotated[Path | None, typer.Option("--data", help="The data set's folder; known already where the run has learned.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to serve at; others can reach 0.0.0.0, which needs --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to serve at.", min=1, max=65535)] = 7860,
    auth: Annotated[
        str | None,
        typer.Option("--auth", envvar="ANOMALYDIFFUSION_AUTH", help="USER:PASSWORD that is asked for; `ps` does not show the variable."),
    ] = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Open the web page: look at data, learn, draw, review, prove, export."""
    from anomalydiffusion.app.studio import studio as call

    call(run, data=data, host=host, port=port, auth=auth)


@tools_app.command()
def bench(
    prior: Annotated[str, typer.Option("--prior", help="As for train; or random:NAME, an architecture with random weights.")] = "tiny",
    what: Annotated[
        str,
        typer.Option("--what", help="load, call, masks, generate, train or all.",
                     autocompletion=offered("load", "call", "masks", "generate", "train", "all")),
    ] = "all",
    preset: Preset = None,
    config: Config = None, device: Device = None, dtype: Dtype = None, compile: Compile = None,
    repeat: Annotated[int, typer.Option("--repeat", help="How often each is measured.")] = 3,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Beside the published way, written plainly.")] = True,
    as_json: AsJson = False, quiet: OnlyTable = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Measure speed and memory of a prior on this machine."""
    from anomalydiffusion.app.bench import bench as call

    found = call(
        prior, what=what, preset=preset, config=config, device=device, dtype=dtype, compile=compile, repeat=repeat, plain=plain,
        quiet=quiet or as_json,
    )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        from anomalydiffusion.app.tables import bench_table

        bench_table(found)


@tools_app.command()
def doctor(
    run: Annotated[Path | None, typer.Argument(help="A run's folder, to look at too.")] = None,
    as_json: AsJson = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Say whether this machine is ready, whether a run is whole and which command comes next."""
    from anomalydiffusion.app.doctor import doctor as call

    health = call(run)
    if as_json:
        print_json(health.to_dict())
    else:
        from anomalydiffusion.app.tables import health_table

        health_table(health)
    if not health.ok:
        raise typer.Exit(1)
