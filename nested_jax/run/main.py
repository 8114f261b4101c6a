"""The command line: `nested-jax` or `python -m nested_jax`, with one subcommand per thing to do.

python -m nested_jax train    --config=experiments/quickstart.py
python -m nested_jax train    --config=experiments/quickstart.py --config.data.path=FILE_OR_DIR --workdir=runs/mine
python -m nested_jax eval     --config=experiments/quickstart.py --contexts=64,256,1024
python -m nested_jax eval     --config=experiments/quickstart.py --zero-shot=FOLDER --tasks=lambada,piqa --limit=100
python -m nested_jax eval     --config=experiments/quickstart.py --questions=niah:single_1,length=1024 --by=depth
python -m nested_jax generate --config=experiments/quickstart.py --prompt="def " --length=400 --top-p=0.95
python -m nested_jax generate --config=experiments/quickstart.py --prompt="def " --state-out=FILE
python -m nested_jax generate --config=experiments/quickstart.py --prompt="class " --state-in=FILE --no-learn
python -m nested_jax describe --config=experiments/quickstart.py:tiny
python -m nested_jax describe --config=experiments/quickstart.py:tiny --sharding --config.mesh.fsdp=4
python -m nested_jax compile  --config=experiments/families.py:titans-lmm@170m --topology=v5p:4x4x4
python -m nested_jax plan     --config=experiments/families.py:titans-lmm@170m --topologies=v5e:4x4,h100:8
python -m nested_jax sweep experiments/titans/table5.py --seeds=0,1,2
python -m nested_jax table experiments/titans/table5.py
python -m nested_jax table --all
python -m nested_jax bench scan
"""

import argparse
import dataclasses
import hashlib
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nested_jax.run import processes

DEBUG = "NESTED_JAX_DEBUG"


def parser() -> argparse.ArgumentParser:
    """The parser of every subcommand; overrides (`--config.field=value`) are taken out before it sees them."""
    top = argparse.ArgumentParser(
        prog="nested-jax",
        description="Train, evaluate and look into models with memories that learn while they read.",
        epilog="Any field of a config can be set: --config.optimizer.learning_rate=1e-3. "
        f"{DEBUG}=1 shows the traceback of an error.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, help: str, *, workdir: bool) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("experiment", nargs="?", metavar="FILE.py[:VARIANT]", help="experiment file")
        added.add_argument("--config", metavar="FILE.py[:VARIANT]", help="the same")
        if workdir:
            added.add_argument("--workdir", help="directory of the run (default: below runs/, named after the config)")
        if name in processes.COMMANDS:
            processes.add_arguments(added)
        return added

    command("train", "start a run, or go on with one that was interrupted", workdir=True)

    about = "bits per byte of a trained model at several context lengths, zero-shot scores, or answers to questions"
    evaluate = command("eval", about, workdir=True)
    evaluate.add_argument(
        "--contexts", metavar="N,N,...", help="context lengths (default: 1/4, 1, 4 and 16 times the training length)"
    )
    evaluate.add_argument("--bytes", type=int, metavar="N", help="score this many validation bytes (default: all)")
    evaluate.add_argument("--chunk", type=int, default=1024, metavar="N", help="tokens per call when streaming (1024)")
    instead = evaluate.add_mutually_exclusive_group()
    instead.add_argument(
        "--stream", type=int, metavar="N", help="instead, read one context of N tokens in constant memory"
    )
    instead.add_argument("--zero-shot", metavar="FOLDER", help="instead, the papers' benchmarks, TASK.jsonl each")
    instead.add_argument(
        "--questions",
        action="append",
        metavar="NAME[,FIELD=VALUE...]",
        help="instead, write and score answers: niah:single_1, hash_hop, babilong:qa1, ...; may be given again",
    )
    evaluate.add_argument("--tasks", type=_names, metavar="TASK,...", help="benchmarks of the folder (default: all)")
    evaluate.add_argument("--limit", type=int, metavar="N", help="rows of each benchmark (default: all)")
    evaluate.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="questions of each kind, or the first rows of a recall set (default: 100)",
    )
    evaluate.add_argument("--by", type=_names, metavar="FIELD,...", help="scores by depth, distance, hops, ..., too")

    generate = command("generate", "let a trained model continue a prompt", workdir=True)
    prompt = generate.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", action="append", metavar="TEXT", help="text to continue, or several (default: the config's)"
    )
    prompt.add_argument("--prompt-file", metavar="FILE", help="file to continue, of any length")
    generate.add_argument("--length", type=int, metavar="N", help="tokens to write (default: the config's)")
    generate.add_argument("--temperature", type=float, help="0 takes the likeliest (default: the config's)")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest tokens")
    generate.add_argument("--top-p", type=float, metavar="P", help="then among the fewest of probability P together")
    generate.add_argument("--stop", default="", metavar="CHARACTERS", help="end a text at any of these")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--state-in", metavar="FILE", help="go on from this state; then a prompt is not needed")
    generate.add_argument("--state-out", metavar="FILE", help="save the state at the end of the text")
    generate.add_argument(
        "--no-learn", action="store_true", help="memories read but do not write what is generated (they do the prompt)"
    )

    about = "levels, periods, objectives, rules, parameters and state of a model as a table, and as a picture"
    described = command("describe", about, workdir=False)
    described.add_argument(
        "--sharding", action="store_true", help="instead, where parameters and states lie on the config's mesh"
    )
    described.add_argument("--picture", metavar="FILE", help="draw what changes how often (.png, .svg, .pdf)")

    about = "without an accelerator: whether a config fits a topology, and the FLOPs and collectives of a step"
    compiled = command("compile", about, workdir=False)
    compiled.add_argument("--topology", metavar="CHIP:SHAPE", help="v5p:4x4x4, h100:8 (default: the mesh, on CPUs)")

    about = "predicted step time, tokens/s, hours and the binding resource of a config on topologies"
    planned = command("plan", about, workdir=False)
    shapes = "v5e:4x4,v5p:4x4x4,h100:8"
    planned.add_argument("--topologies", type=_names, default=_names(shapes), metavar="CHIP:SHAPE,...", help=shapes)
    planned.add_argument(
        "--efficiency", type=float, default=0.4, help="share of the peak FLOP/s that products reach (0.4)"
    )
    planned.add_argument("--bandwidth", type=float, default=0.8, help="share of HBM's and network's bytes/s (0.8)")
    planned.add_argument(
        "--compiler", choices=("auto", "cpu", "tpu"), default="auto", help="auto: libtpu for TPUs if there"
    )
    planned.add_argument("--csv", metavar="FILE", help="write the table there, too")

    swept = command("sweep", "run every row of a table with every seed; go on with what was interrupted", workdir=True)
    swept.add_argument("--seeds", type=_numbers, default=(), metavar="N,N,...", help="seeds (default: the table's)")
    swept.add_argument("--rows", type=_names, default=(), metavar="ROW,ROW,...", help="rows (default: all)")
    swept.add_argument("--parts", type=_names, default=(), metavar="PART,PART,...", help="parts (default: all)")
    swept.add_argument("--again", action="store_true", help="run what is recorded beside the experiment, too")

    about = "published numbers beside those of a sweep, as text, Markdown, CSV and a picture"
    tabled = command("table", about, workdir=True)
    tabled.add_argument(
        "--all", action="store_true", help="instead, every table below experiments/, in RESULTS.md there"
    )

    bench = commands.add_parser("bench", help="time something", description="time something", add_help=False)
    bench.add_argument("name", nargs="?", help="what to time")
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    return top


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.field=value` (or `--config.field value`) out of a command line.

    Returns:
      The other arguments, and field path → value.

    Raises:
      ValueError: if an override has no value or comes twice.

    Example:
      >>> split_overrides(["train", "--config=a.py", "--config.model.dim=64"])
      (['train', '--config=a.py'], {'model.dim': '64'})
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            found = next(waiting, None)
            if found is None or found.startswith("--"):
                raise ValueError(f"{argument} needs a value: {argument}=VALUE")
            value = found
        if name in overrides:
            raise ValueError(f"--config.{name} is given twice")
        overrides[name] = value
    return rest, overrides


def default_workdir(spec: str, overrides: Mapping[str, str], free: Sequence[str] = ()) -> pathlib.Path:
    """Where a run goes unless told otherwise: `runs/<experiment>[-<variant>][-<field>=<value>...]`.

    Args:
      spec: `FILE.py[:VARIANT]`.
      overrides: field path → value; another config gets another directory.
      free: fields that do not, because a run may change them as it is continued.

    Example:
      >>> default_workdir("experiments/quickstart.py:tiny", {"data.path": "my/code", "keep": "1"}, ["keep"]).as_posix()
      'runs/quickstart-tiny-data.path=my_code'
    """
    file, _, variant = spec.partition(".py:")
    parts = [pathlib.Path(file).name.removesuffix(".py"), *([variant] if variant else [])]
    told = {field: value for field, value in sorted(overrides.items()) if not {field, field.split(".")[0]} & {*free}}
    parts += [f"{field}={value}" for field, value in told.items()]
    full = "-".join(parts)
    name = "".join(c if c.isalnum() or c in "-_.=" else "_" for c in full)
    if len(name) > 100:
        name = f"{name[:80]}-{hashlib.sha256(full.encode()).hexdigest()[:12]}"
    return pathlib.Path("runs") / name


def run(arguments: Sequence[str]) -> None:
    """Runs one command line.

    Raises:
      ValueError: for what the user can put right.
      TrainingStopped: if training had to stop.
      SystemExit: from the parser, for help and malformed options.
    """
    if arguments[:1] == ["bench"]:
        from nested_jax.run.bench import bench

        return bench(arguments[1:])
    rest, overrides = split_overrides(arguments)
    options = parser().parse_args(rest)
    if options.command == "table" and options.all:
        from nested_jax.run.results import write

        if options.experiment or options.config or options.workdir or overrides:
            raise ValueError("table --all is of every experiment as it is; it takes no experiment, workdir or override")
        return print(write(pathlib.Path("experiments")))
    if (options.experiment is None) == (options.config is None):
        raise ValueError(f"{options.command} takes one experiment file, FILE.py or --config=FILE.py")
    options.config = options.config or options.experiment

    if options.command in ("sweep", "table"):
        return _run_table(options, overrides)

    if options.command in ("compile", "plan"):
        import jax

        jax.config.update("jax_platforms", "cpu")  # libtpu where it is installed is not to look for a TPU

    from nested_jax import config as configs
    from nested_jax.run import commands, evaluate, host
    from nested_jax.train.experiment import FREE, Experiment

    experiment = configs.load(options.config, overrides)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"config: get_config of {options.config} must return an Experiment, got {type(experiment)}")
    if options.command in ("compile", "plan"):
        return _run_ahead(experiment, overrides, options)
    processes.start(options.command, options, math.prod(dataclasses.astuple(experiment.mesh)))
    host.keep_freed_memory()
    chosen = getattr(options, "workdir", None)
    workdir = pathlib.Path(chosen or default_workdir(options.config, overrides, FREE))
    table: dict[str, Callable[[Experiment, pathlib.Path, Any], None]] = {
        "train": commands.train,
        "eval": evaluate.evaluate,
        "generate": commands.generate,
        "describe": commands.describe,
    }
    return table[options.command](experiment, workdir, options)


def _run_ahead(experiment: Any, overrides: Mapping[str, str], options: argparse.Namespace) -> None:
    from nested_jax.run.compile import compile
    from nested_jax.run.plan import plan

    {"compile": compile, "plan": plan}[options.command](experiment, overrides, options)


def _run_table(options: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    from nested_jax import config as configs
    from nested_jax.run import host
    from nested_jax.run.comparison import PLACES, load
    from nested_jax.run.records import told
    from nested_jax.run.sweep import sweep
    from nested_jax.run.table import table

    comparison = load(options.config, overrides)
    telling = {name: value for name, value in told(overrides).items() if name not in PLACES}
    usual = default_workdir(options.config, telling)
    paper = pathlib.Path(comparison.file).parent.name  # another paper has a table of this number, too
    workdir = pathlib.Path(options.workdir or usual.with_name(f"{paper}-{usual.name}"))
    if options.command == "sweep":
        first: Any = configs.load(comparison.spec(*comparison.cells(options.rows, options.parts)[0]), overrides)
        processes.start("sweep", options, math.prod(dataclasses.astuple(first.mesh)))
        host.keep_freed_memory()
        sweep(comparison, workdir, options.seeds, options.rows, options.parts, options.again)
    print(f"\n{table(comparison, workdir)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    What the user can put right is printed as one message, without a traceback unless `NESTED_JAX_DEBUG` is set.

    Returns:
      Exit code 0 (done, or interrupted and saved), 1 (training stopped), 2 (bad input), 134 (another process of the run
      has stopped) or 130 (interrupted). Of several processes one that fails does not return.
    """
    sys.stdout.reconfigure(line_buffering=True)  # pyrefly: ignore[missing-attribute]
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
    except Exception as error:
        if not processes.several():
            raise
        code = processes.failed(error)
    return processes.leave(code)


def _run(arguments: Sequence[str]) -> int:
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        if os.environ.get(DEBUG):
            raise
        print(f"nested-jax{processes.name()}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        from nested_jax.train.loop import TrainingStopped

        if not isinstance(error, TrainingStopped) or os.environ.get(DEBUG):
            raise
        print(f"nested-jax{processes.name()}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nested-jax: interrupted", file=sys.stderr)
        return 130
    return 0
