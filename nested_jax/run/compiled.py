"""A config's training step, compiled for a mesh of devices that need not be there, and what the program says of itself.

`python -m nested_jax.run.compiled` reads a `Request` as JSON from its standard input and writes a `Compiled` as JSON to
its standard output, in a process of its own: how many devices JAX sees is settled before it starts. For a TPU topology
libtpu compiles, as on the TPU itself (`jax.experimental.topologies`); else XLA's compiler for CPUs, for as many virtual
devices as the mesh has.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding

from nested_jax import config as configs
from nested_jax.data import SeriesConfig, TaskConfig, load_series
from nested_jax.models import ForecasterConfig
from nested_jax.run import jaxpr_flops
from nested_jax.run.counts import Collective, Counts, count
from nested_jax.train.experiment import Experiment
from nested_jax.train.optimizer import make_optimizer
from nested_jax.train.problems import open_model
from nested_jax.train.series_problem import squared_error
from nested_jax.train.sharding import AXES, BATCH, MeshConfig, device_grid, make_mesh, placements
from nested_jax.train.step import loss, make_step, place

_FULL = (
    re.compile(r"Used (?P<needed>\S+) of (?P<there>\S+) (?P<which>hbm|vmem)\."),
    re.compile(r"\((?P<needed>[\d.]+\w)\) exceeds available (?P<which>\w+) \((?P<there>[\d.]+\w)\)"),
)


class Request(NamedTuple):
    """What is to be compiled.

    Attributes:
      spec: `FILE.py[:VARIANT]`.
      overrides: of its fields.
      mesh: devices per axis.
      topology: of TPUs, for libtpu; None for virtual CPU devices.
      layers: blocks in place of the config's; None for its own.
    """

    spec: str
    overrides: Mapping[str, str]
    mesh: Mapping[str, int]
    topology: str | None = None
    layers: int | None = None


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
      arguments: parameters, optimizer state and batch.
      outputs: what comes back and does not take the place of an argument.
      temporaries: what lives in between.
      code: the program.
    """

    arguments: float
    outputs: float
    temporaries: float
    code: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


class Compiled(NamedTuple):
    """A compiled step.

    Attributes:
      compiler: "TPU v5 lite" or whatever the device calls itself, "cpu" for virtual devices.
      devices: how many share the step.
      parameters: of the model.
      tokens: of a batch (of a series: steps).
      flops: of the whole step by precision, see `nested_jax.run.jaxpr_flops`.
      trace_seconds: tracing and lowering.
      compile_seconds: compiling.
      memory: on a device; None if it does not fit.
      counts: of a device; None if it does not fit.
      full: what the compiler said where it does not fit: bytes it needs, bytes there are, of which memory.
    """

    compiler: str
    devices: int
    parameters: float
    tokens: int
    flops: Mapping[str, float]
    trace_seconds: float
    compile_seconds: float
    memory: Memory | None
    counts: Counts | None
    full: tuple[str, str, str] | None = None


def compile_step(experiment: Experiment, mesh: Mesh) -> Compiled:
    """Compiles the training step of an experiment; no array is made and no data is read but a task's or series'.

    Args:
      experiment: its mesh is not looked at.
      mesh: of devices that are there, or of a topology.

    Returns:
      The counts.

    Raises:
      ValueError: if the batch cannot be shared out.
    """
    devices = mesh.devices.size
    begin = time.perf_counter()
    model = open_model(experiment)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    minimised = squared_error if isinstance(experiment.data, SeriesConfig) else loss
    update = make_step(model, optimizer, experiment.optimizer, experiment.steps, minimised, experiment.microbatches)
    with jax.set_mesh(mesh):
        state = place(model, optimizer, experiment.seed, mesh)
        step = jax.jit(update, donate_argnums=0, out_shardings=(placements(state), None))
        batch = batch_shapes(experiment, mesh)
        traced = step.trace(state, batch)
        lowered = traced.lower()
        traced_at = time.perf_counter()
        program, full = None, None
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            full = shortage(str(error))
            if full is None:
                raise
    compiled_at = time.perf_counter()
    platform = mesh.devices.flat[0].platform
    memory = counts = None
    if program is not None:
        text, said = program.as_text(), program.memory_analysis()
        assert text is not None
        assert said is not None
        counts = count(text, devices, fused=platform != "cpu")
        memory = Memory(
            said.argument_size_in_bytes,
            said.output_size_in_bytes - said.alias_size_in_bytes,
            said.temp_size_in_bytes,
            said.generated_code_size_in_bytes,
        )
    return Compiled(
        compiler="cpu" if platform == "cpu" else mesh.devices.flat[0].device_kind,
        devices=devices,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        tokens=experiment.data.batch_size * experiment.data.sequence_length
        if not isinstance(experiment.data, TaskConfig)
        else batch["inputs"].size,
        flops=jaxpr_flops.count(traced.jaxpr.jaxpr),
        trace_seconds=traced_at - begin,
        compile_seconds=compiled_at - traced_at,
        memory=memory,
        counts=counts,
        full=full,
    )


def shortage(message: str) -> tuple[str, str, str] | None:
    """Reads a compiler's error.

    Returns:
      What is needed on a device, what is there, and the name of the memory; None if memory is not what is short.

    Example:
      >>> shortage("RESOURCE_EXHAUSTED: memory required for HLO temporaries (18.23G) exceeds available HBM (15.75G).")
      ('18.23G', '15.75G', 'HBM')
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = next(filter(None, (pattern.search(message) for pattern in _FULL)), None)
    return (found["needed"], found["there"], found["which"].upper()) if found else ("more", "too little", "memory")


def batch_shapes(experiment: Experiment, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and placements of what a batch of the experiment holds."""
    data, sharding = experiment.data, NamedSharding(mesh, BATCH)
    rows = data.batch_size

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    if isinstance(data, SeriesConfig):
        channels = load_series(data).values.shape[1]
        return {
            "inputs": array(jnp.float32, data.lookback, channels),
            "targets": array(jnp.float32, max(data.horizons), channels),
        }
    if isinstance(data, TaskConfig):
        length = data.examples().inputs.shape[1]
        return {
            "inputs": array(jnp.int32, length),
            "targets": array(jnp.int32, length),
            "trained": array(jnp.bool_, length),
        }
    tokens = {"tokens": array(jnp.int32, data.sequence_length + 1)}
    if not data.packed:
        return tokens
    assert not isinstance(experiment.model, ForecasterConfig)
    chunks = -(-data.sequence_length // experiment.model.chunk_size)
    return tokens | {"reset": array(jnp.bool_, chunks), "trained": array(jnp.bool_, data.sequence_length)}


def topology_mesh(name: str, sizes: Mapping[str, int]) -> Mesh:
    """The mesh of a TPU topology's devices, laid out as in a run (`train.sharding.device_grid`), with automatic axes.

    Args:
      name: of the topology, `v5p:4x4x4`.
      sizes: devices per axis.

    Raises:
      ValueError: if libtpu knows no such topology, or it has another number of devices.
    """
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology {name!r} is none that libtpu knows: {str(error).splitlines()[0]}") from error
    if len(devices) != math.prod(sizes.values()):
        raise ValueError(f"topology {name!r} has {len(devices)} devices for libtpu, the mesh {dict(sizes)}")
    return Mesh(device_grid([sizes[axis] for axis in AXES], devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def run(request: Request) -> Compiled:
    """Compiles in a process of its own.

    Raises:
      ValueError: what the config, or the compiler, refused.
    """
    environment = dict(os.environ) | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing here asks for a TPU, so that several may compile side by side
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    devices = math.prod(request.mesh.values())
    if request.topology is None:  # no need of fast code for a program that is not run
        environment |= {"JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    with tempfile.TemporaryFile("w+") as written:
        done = subprocess.run(
            [sys.executable, "-m", "nested_jax.run.compiled"],
            input=json.dumps(request._asdict()),
            stdout=written,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )
        written.seek(0)
        answer = written.read()
    if done.returncode == 2:
        raise ValueError(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        raise RuntimeError(f"compiling ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return decode(answer.splitlines()[-1])


def decode(text: str) -> Compiled:
    """Reads what `encode` wrote."""
    found = Compiled(**json.loads(text))
    counts = None
    if found.counts is not None:
        flops, traffic, collectives, unknown = found.counts
        counts = Counts(flops, traffic, tuple(Collective(*one) for one in collectives), unknown)
    memory = None if found.memory is None else Memory(*found.memory)
    return found._replace(memory=memory, counts=counts, full=found.full and tuple(found.full))


def encode(compiled: Compiled) -> str:
    """One line of JSON."""
    return json.dumps(compiled._asdict())


def main() -> int:
    """Answers one request; exit code 2 for what the user can put right."""
    request = Request(**json.loads(sys.stdin.read()))
    try:
        experiment = configs.load(request.spec, request.overrides)
        experiment = dataclasses.replace(experiment, mesh=MeshConfig(**request.mesh))
        if request.layers is not None:
            model = dataclasses.replace(experiment.model, layers=request.layers)
            experiment = dataclasses.replace(experiment, model=model)
        configs.validate(experiment)
        if request.topology is None:
            mesh = make_mesh(experiment.mesh)
        else:
            mesh = topology_mesh(request.topology, request.mesh)
        print(encode(compile_step(experiment, mesh)))
    except ValueError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
