"""The commands: what they take, what they print, and what they answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import reptool
from reptool.api.accept import is_onnx
from reptool.cli import compared, files, timed
from reptool.cli import doctor as doctors
from reptool.cli.adapted import with_adapter
from reptool.cli.given import inputs_of, model_of
from reptool.cli.written import as_json, check_out, check_report, write_out, write_report
from reptool.errors import InputError
from reptool.frontends.spec import SECONDS

HELP = (
    "Structural re-parameterization: collapse a model's branches and norms into plain layers, exactly. SPEC is "
    "timm:NAME, torchvision:NAME, hf:NAME, package.module:callable(argument=value); deploy and explain take *.onnx."
)
OUT = "*.safetensors (with recipe), *.onnx, *.pt2, *.xml, *.pte, or a folder for the model's own save_pretrained"
app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Spec = Annotated[str, typer.Argument(help="the model, by name", metavar="SPEC")]
Weights = Annotated[Path | None, typer.Option(help="a checkpoint: safetensors, or tensors of torch.save")]
Key = Annotated[str | None, typer.Option(help="which state dict in the checkpoint is meant")]
Inputs = Annotated[list[str] | None, typer.Option(help="[name=]1,3,224,224[:dtype], once for each input")]
Include = Annotated[list[str] | None, typer.Option(help="patterns on paths of modules; only these")]
Exclude = Annotated[list[str] | None, typer.Option(help="patterns on paths of modules that are left alone")]
Require = Annotated[list[str] | None, typer.Option(help="no_batchnorm, no_refusals or all_traced; else exit 1")]
ReportFile = Annotated[Path | None, typer.Option("--report", help="*.html, *.json or *.md")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace files that are there already")]
Force = Annotated[bool, typer.Option("--force", help="take the fewest operations, also where that is dearer")]
Fallback = Annotated[bool, typer.Option("--keep-fallback", help="also fuse where code asks, and keep the originals")]
Unwrap = Annotated[bool, typer.Option("--unwrap", help="put layers in the places of what only hands on to them")]
Json = Annotated[bool, typer.Option("--json", help="print data for programs")]
Seed = Annotated[int, typer.Option(help="of random weights and inputs")]
Seconds = Annotated[float, typer.Option("--timeout", help="how many seconds building the model may take")]


def _console() -> Console:
    return Console(soft_wrap=False)


def _say(text: str) -> None:
    """Say something beside the answer."""
    print(text, file=sys.stderr)


@app.command()
def deploy(
    spec: Spec, weights: Weights = None, key: Key = None, inputs: Inputs = None,
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    adapter: Annotated[Path | None, typer.Option(help="a folder with an adapter, which is merged into SPEC")] = None,
    require: Require = None, report: ReportFile = None, include: Include = None, exclude: Exclude = None,
    force: Force = False, keep_fallback: Fallback = False, unwrap: Unwrap = False, overwrite: Overwrite = False,
    json: Json = False, seed: Seed = 0, timeout: Seconds = SECONDS,
) -> int:  # fmt: skip
    """Collapse a model, verify it, and write it to a file."""
    check_report(report, overwrite)
    if is_onnx(spec):
        options = {"require": require, "include": include, "exclude": exclude, "force": force}
        return files.deploy(spec, out, report, overwrite, json, options)
    if out is not None:
        check_out(out, (), overwrite)
    model = model_of(spec, weights, key, seed, timeout)
    if adapter is not None:
        model, unwrap = with_adapter(model, adapter), True
    given = inputs_of(inputs or (), model, seed)
    check_out(out, given, overwrite)
    deployed = reptool.deploy(
        model, given, require=require or None, include=include or None, exclude=exclude or None, force=force,
        keep_fallback=keep_fallback, unwrap=unwrap, progress=False if json else None,
    )  # fmt: skip
    found = reptool.report(deployed)
    made = None if out is None else write_out(out, deployed, given, model, overwrite)
    if report is not None:
        write_report(report, found, overwrite)
    if json:
        print(as_json({"report": found.to_dict(), "out": None if out is None else str(out),
                       "export": None if made is None else made.to_dict()}))  # fmt: skip
        return 0
    console = _console()
    console.print(found)
    if made is not None:
        console.print(made)
    for path in (p for p in (out, report) if p is not None):
        _say(f"written: {path}")
    return 0


@app.command()
def explain(
    spec: Spec, weights: Weights = None, key: Key = None, inputs: Inputs = None, report: ReportFile = None,
    include: Include = None, exclude: Exclude = None, force: Force = False, keep_fallback: Fallback = False,
    overwrite: Overwrite = False, json: Json = False, seed: Seed = 0, timeout: Seconds = SECONDS,
) -> int:  # fmt: skip
    """Say what would be fused, and what would be left and why, without doing it."""
    check_report(report, overwrite)
    if is_onnx(spec):
        found = reptool.explain(spec, include=include or None, exclude=exclude or None, force=force)
        return files.told(found, report, overwrite, json)
    model = model_of(spec, weights, key, seed, timeout)
    found = reptool.explain(
        model, inputs_of(inputs or (), model, seed), include=include or None, exclude=exclude or None, force=force,
        keep_fallback=keep_fallback, progress=False if json else None,
    )  # fmt: skip
    if report is not None:
        write_report(report, found, overwrite)
        _say(f"written: {report}")
    if json:
        print(found.to_json())
    else:
        _console().print(found)
    return 0


@app.command()
def expand(
    spec: Spec,
    block: Annotated[str, typer.Option(help="a class of reptool.blocks: RepVGGBlock, DiverseBranchBlock, ...")],
    weights: Weights = None, key: Key = None, inputs: Inputs = None,
    where: Annotated[list[str] | None, typer.Option(help="patterns on paths of convolutions; all by default")] = None,
    out: Annotated[Path | None, typer.Option(help="*.safetensors: the grown model's state_dict")] = None,
    overwrite: Overwrite = False, json: Json = False, seed: Seed = 0, timeout: Seconds = SECONDS,
) -> int:  # fmt: skip
    """Grow blocks that train as several branches into a model that exists."""
    if out is not None and out.suffix != ".safetensors":
        raise InputError(f"{str(out)!r}: the grown model's state_dict is written as *.safetensors")
    check_out(out, (), overwrite)
    kind = _block(block)
    model = model_of(spec, weights, key, seed, timeout)
    chosen: list[Any] = list(where or ())
    grown = reptool.expand(model, kind, where=chosen or None, example_inputs=inputs_of(inputs or (), model, seed))
    found = reptool.expansion_report(grown)
    if out is not None:
        compared.write_state(grown, out, overwrite)
        _say(f"written: {out}")
    if json:
        print(found.to_json())
    else:
        _console().print(found)
    return 0


def _block(name: str) -> Any:
    found = getattr(reptool.blocks, name, None) if name in reptool.blocks.__all__ else None
    if not isinstance(found, type):
        names = ", ".join(n for n in reptool.blocks.__all__ if isinstance(getattr(reptool.blocks, n), type))
        raise InputError(f"there is no block {name!r}; there are {names}")
    return found


@app.command()
def compare(
    spec: Spec,
    other: Annotated[str, typer.Argument(help="another SPEC, *.safetensors, *.onnx or *.pt2", metavar="OTHER")],
    weights: Weights = None, key: Key = None, inputs: Inputs = None,
    tolerance: Annotated[float, typer.Option(help="largest difference, as a fraction of the largest output")] = 1e-4,
    json: Json = False, seed: Seed = 0, timeout: Seconds = SECONDS,
) -> int:  # fmt: skip
    """Compare the outputs of two models for the same random inputs; exit 1 where they differ."""
    found = compared.compare(spec, other, weights, key, inputs or (), tolerance, seed, timeout)
    if json:
        print(as_json(vars(found)))
    else:
        _console().print(found.sentence())
    return 0 if found.same else 1


@app.command()
def bench(
    spec: Spec, weights: Weights = None, key: Key = None, inputs: Inputs = None,
    seconds: Annotated[float, typer.Option(help="how long each model is timed, at least")] = 2.0,
    threads: Annotated[int, typer.Option(help="threads that PyTorch may use")] = 1,
    json: Json = False, seed: Seed = 0, timeout: Seconds = SECONDS,
) -> int:  # fmt: skip
    """Time a model before and after, side by side."""
    model = model_of(spec, weights, key, seed, timeout)
    given = inputs_of(inputs or (), model, seed)
    if given is None:
        raise InputError("to time a model, say what goes into it: --inputs 1,3,224,224")
    found = timed.bench(model, given, seconds, threads)
    if json:
        print(as_json(vars(found)))
    else:
        _console().print(found.table())
    return 0


@app.command()
def doctor(json: Json = False) -> int:
    """Say what is installed and what works here; exit 1 where something that is installed does not."""
    versions, checks = doctors.versions(), doctors.checks()
    wrong = {name: why for name, why in checks.items() if why and "is not installed" not in why}
    if json:
        print(as_json({"versions": versions, "checks": checks}))
    else:
        console = _console()
        for name, version in versions.items():
            console.print(f"{name:16} {version or '-'}", highlight=False)
        for name, why in checks.items():
            console.print(f"{name:16} {why or 'works'}", highlight=False)
    return 1 if wrong else 0


@app.command()
def demo(
    spec: Annotated[str | None, typer.Argument(help="somebody's model; digits are trained without one")] = None,
    onnx: Annotated[Path, typer.Option(help="the file that is written")] = Path("demo.onnx"),
    epochs: Annotated[int, typer.Option(help="passes over the training images")] = 20,
    seed: Seed = 0,
) -> int:
    """Train a small network, collapse it, check every prediction, export, compare."""
    from reptool.demo.__main__ import main

    chosen = [] if spec is None else ["--model", spec]
    return main([*chosen, "--onnx", str(onnx), "--epochs", str(epochs), "--seed", str(seed)])


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    if version:
        print(f"reptool {reptool.__version__}")
        raise typer.Exit
