"""The command line: ``accel info | explain | build | bench | conform``. ``--json`` gives data, and
the exit code tells the truth: 0 all is well, 1 it is not, 2 the command was misused.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accel import arguments, diagnosis, layers, ops
from accel import registry as _registry
from accel.accelerator import Accelerator
from accel.bench.command import bench
from accel.errors import AccelError, AccelWarning
from accel.native import cache
from accel.op_builder import OpBuilder

app = typer.Typer(
    help="What accel found on this machine, what it chose, and why.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

_COLOURS = {
    "chosen": "bold green", "available": "green", "refused": "yellow",
    diagnosis.PASSED: "green", diagnosis.FAILED: "bold red",
    diagnosis.BUILDABLE: "cyan", diagnosis.IMPORTABLE: "cyan",
}  # fmt: skip


@app.command()
def info(
    as_json: Json = False,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Compile what has to be compiled and test it too.")
    ] = False,
) -> None:
    """Backends found, chosen and refused; toolchain and cache; what serves each op."""
    facts = diagnosis.diagnose(build=self_test)
    if as_json:
        _print_json(facts)
    else:
        _print_info(Console(), facts)
    raise typer.Exit(0 if diagnosis.is_healthy(facts) else 1)


@app.command()
def explain(
    what: Annotated[
        str, typer.Argument(help="An op, such as linear, or a layer, such as TiledLinear.")
    ],
    device: Annotated[
        str | None, typer.Option(help="A torch device; default: the accelerator's.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="A torch dtype.")] = "float32",
    shape: Annotated[
        list[str] | None,
        typer.Option(help="A tensor argument's shape, 8x128; repeat it for the next argument."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help='An option, "act=silu" or "mask=true"; may be repeated.'),
    ] = None,
    as_json: Json = False,
) -> None:
    """Which implementation serves an op or each op of a layer, and why every other does not."""
    where = None if device is None else arguments.device(device)
    layer = _layer(what)
    if layer is None:
        shapes = tuple(arguments.shape(text) for text in shape or ())
        options = dict(arguments.option(text) for text in option or ())
        decision = ops.explain(
            what, device=where, dtype=arguments.dtype(dtype), shapes=shapes, **options
        )
        decisions = {what: decision}
    elif shape or option:
        raise ValueError(f"--shape and --option are of an op; {what} is a layer")
    else:
        decisions = layers.explained(layer, device=where, dtype=arguments.dtype(dtype))
    found = {op: decision.to_dict() for op, decision in decisions.items()}
    lines = [str(decision) for decision in decisions.values()]
    lines = lines or [f"{what} uses no op: torch's own functions compute it"]
    _report(found[what] if layer is None else found, lines, as_json)
    raise typer.Exit(0 if all(d.chosen for d in decisions.values()) else 1)


def _layer(name: str) -> type[layers.OpLayer] | None:
    """The layer or inference op of that name."""
    found = getattr(layers, name, None) or getattr(layers.inference, name, None)
    return found if isinstance(found, type) and issubclass(found, layers.OpLayer) else None


@app.command()
def build(
    as_json: Json = False,
    clean: Annotated[bool, typer.Option("--clean", help="Empty the cache instead.")] = False,
) -> None:
    """Compile ahead of time what would be compiled on first use."""
    if clean:
        removed = [str(path) for path in cache.clean()]
        _report({"removed": removed}, [f"removed {path}" for path in removed], as_json)
        return
    built, failed = [], {}
    for name, item in _to_build().items():
        try:
            item.build()
            built.append(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    lines = [f"built {name}" for name in built]
    lines += [f"could not build {name}: {why}" for name, why in failed.items()]
    _report({"built": built, "failed": failed, "cache": str(cache.folder())}, lines, as_json)
    raise typer.Exit(1 if failed else 0)


app.command()(bench)


@app.command()
def conform(
    backend: Annotated[str | None, typer.Option(help="The backend to prove.")] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="Prove the suite.")] = False,
    faults: Annotated[str | None, typer.Option(help="Only this name (* ?) or kind.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder to write the report into.")] = None,
    ops_: Annotated[str | None, typer.Option("--ops", help="Only these, comma-separated.")] = None,
    dtypes: Annotated[str | None, typer.Option(help="Only these, comma-separated.")] = None,
    impls: Annotated[str | None, typer.Option(help="Only these, comma-separated.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Only ids like this (* ?).")] = None,
    profile: Annotated[str | None, typer.Option(help="inference, training or engine.")] = None,
    level: Annotated[str, typer.Option(help="full, or smoke: one input of each kind.")] = "full",
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs that are drawn.")] = 0,
    expectations: Annotated[Path | None, typer.Option(help="File of expected outcomes.")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Name them, run none.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the outcome.")] = False,
    as_json: Json = False,
) -> None:
    """Prove a backend on this machine, or the suite (needs accel-conformance)."""
    try:
        import accel_conformance  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as error:
        if error.name != "accel_conformance":
            raise
        _fail("accel conform needs the conformance suite: pip install ./conformance")
    if self_test:
        told = accel_conformance.self_test(
            faults, report=report, list_only=list_only, json=as_json, quiet=quiet
        )
        raise typer.Exit(told)
    if backend is None:
        _fail("accel conform needs --backend NAME, or --self-test")
    named = arguments.names
    code = accel_conformance.run(
        backend, report=report, ops=named(ops_), dtypes=named(dtypes), impls=named(impls),
        cases=case, profile=profile, level=level, seed=seed, expectations=expectations,
        list_only=list_only, quiet=quiet, json=as_json,
    )  # fmt: skip
    raise typer.Exit(code)


def main() -> None:
    """Entry point: errors of accel and of its users become a sentence and exit code 2."""
    warnings.simplefilter("always", AccelWarning)
    warnings.showwarning = _show_warning
    try:
        app()
    except (AccelError, ValueError, TypeError, LookupError) as error:
        _fail(f"{type(error).__name__}: {error}")


def _show_warning(message: Any, category: Any, *rest: Any, **more: Any) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)


def _fail(text: str) -> NoReturn:
    print(f"accel: {text}", file=sys.stderr)
    sys.exit(2)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def _report(data: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        _print_json(data)
    else:
        print("\n".join(lines) or "nothing to do")


def _to_build() -> dict[str, Accelerator | OpBuilder]:
    """What compiles something for usable backends, by a name for people."""
    registry = _registry.registry()
    usable = [c for c in registry.backends() if not c.unavailable()]
    found: list[Accelerator | OpBuilder] = [registry.accelerator(c.name) for c in usable]
    found += [builder for builder, refusals in registry.builders() if not refusals]
    return {
        f"{type(item).__module__}.{type(item).__name__}": item
        for item in found
        if type(item).build not in (Accelerator.build, OpBuilder.build)
    }


def _print_info(console: Console, facts: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    console.print(versions, style="dim", highlight=False)
    chosen = facts["accelerator"]
    style = "bold green" if chosen["chosen"] else "bold red"
    console.print(
        f"accelerator: [{style}]{chosen['chosen'] or 'none'}[/] ({escape(chosen['reason'])})"
    )
    console.print(_backend_table(facts["backends"]))
    for backend in facts["backends"]:
        if backend["traceback"]:
            console.print(f"[bold red]{escape(backend['name'])}[/] ({backend['distribution']}):")
            console.print(escape(backend["traceback"]), highlight=False)
    native = facts["native"]
    console.print(
        f"compiler: {native['compiler'] or 'none'}, ninja: {native['ninja'] or 'none'}, "
        f"cache: {native['cache']} ({native['cache_bytes'] / 2**20:.1f} MiB)",
        highlight=False,
        soft_wrap=True,
    )
    for name, value in facts["variables"].items():
        console.print(f"{name}={escape(value)}", highlight=False)
    if facts["ops"]:
        console.print(_op_table(facts["ops"]))
    for row in facts["ops"]:
        for reason in row["reasons"]:
            console.print(f"{row['op']} by {row['implementation']}: {escape(reason)}")


def _backend_table(backends: list[dict[str, Any]]) -> Table:
    table = Table("backend", "from", "rank", "state", title="plugins", title_justify="left")
    table.add_column("why", overflow="fold")
    for backend in backends:
        reasons = [
            f"needs {r['want']}, found {r['have']}" + (f"\n  {r['remedy']}" if r["remedy"] else "")
            for r in backend["refusals"]
        ]
        why = "\n".join([*reasons, *filter(None, [backend["caveat"]])])
        rank = "" if backend["rank"] is None else str(backend["rank"])
        kind = "" if backend["kind"] == "backend" else f" ({backend['kind']})"
        state = f"[{_COLOURS[backend['state']]}]{backend['state']}[/]{kind}"
        table.add_row(backend["name"], backend["distribution"], rank, state, escape(why))
    return table


def _op_table(rows: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    table = Table("op", *(name.replace(".", ".\n") for name in names), title_justify="left")
    table.title = "ops (importable < buildable < self-test passed; ~ rows vary with shape)"
    for op in dict.fromkeys(row["op"] for row in rows):
        cells = {row["implementation"]: row for row in rows if row["op"] == op}
        table.add_row(op, *(_cell(cells.get(name)) for name in names))
    return table


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "[dim]-[/]"
    varies = "" if row["shape_invariant"] else " [dim]~[/]"
    return f"[{_COLOURS[row['state']]}]{row['state'].removeprefix('self-test ')}[/]{varies}"
