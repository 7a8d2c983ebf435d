"""`rrm plan`."""

from typing import TYPE_CHECKING, Annotated

import typer

from rrm_jax.cli.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from rrm_jax.planning.memory import Footprint


def command(
    config: ConfigFile,
    overrides: Overrides = None,
    topology: Annotated[
        str,
        typer.Option(
            help="Devices to plan for: a TPU slice (v4, v5e, v5p, v6e), v5p:4x4x4, two, 2xv5p:4x4x4, GPUs, h100:8, or "
            "this machine's processors as so many devices, cpu:8."
        ),
    ] = "v5p:4x4x4",
    model: Annotated[
        str | None,
        typer.Option(help="The model's shape where model.path is not there: 1.5b, 7b, 14b, 32b.", show_default=False),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a step's prompts, for seconds; else the longest.", show_default=False)
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Of a step's completions, for seconds; else the longest.", show_default=False),
    ] = None,
    efficiency: Annotated[float, typer.Option(help="The share of the roofline that is reached.")] = 0.5,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PROGRAM", help="Compile this program alone; may be repeated.", show_default=False),
    ] = None,
    analytic: Annotated[
        bool, typer.Option("--analytic", help="Estimate by arithmetic: seconds instead of minutes, and no compiler.")
    ] = False,
    search: Annotated[
        bool,
        typer.Option("--search", help="Find the meshes, remat, micro-batch and slots that are quickest and fit."),
    ] = False,
    compiled: Annotated[
        int, typer.Option("--compile", min=1, help="Of a search, so many proposals may be compiled till one fits.")
    ] = 2,
) -> None:
    """What a training run will take on devices that are not here: memory, exchanges, seconds a step.

    Compiles the run's own programs (prefill, decode, hand-over of weights, log-probs, update) from shapes alone, with
    the compiler for the devices: no device, and no weights, are needed. For TPUs that is pip install 'rrm-jax[tpu]',
    for H100 and H200 pip install 'rrm-jax[cuda13]'. It takes minutes, and a few GiB of this machine's memory. Memory is
    planned for the longest prompts and completions that the configuration allows.

    Exit code 0: it fits; 1: it does not, and what to change is printed.

    What samples on devices of its own (rollout.devices) is planned with --analytic alone.

    A search sorts by arithmetic, and compiles the best; what does not fit is named, and the next one tried.

    With --analytic, which any GPU will do for, temporaries and exchanges are a model of what is large: see
    docs/planning.md for its error.

    \b
    Example:
      rrm plan rrm_7b.yaml --model 7b --topology v6e:4x4 mesh.tensor=2
      rrm plan rrm_32b.yaml --model 32b --topology h100:32 --analytic
      rrm plan rrm_32b.yaml --model 32b --topology v6e:8x8 --search
      rrm plan grpo_tiny.yaml --model 1.5b --topology cpu:1
      rrm plan rrm_7b.yaml --model 7b --topology h100:8 --analytic rollout.devices=2
    """
    import jax

    from rrm_jax.cli.loading import warn
    from rrm_jax.config import load_config
    from rrm_jax.planning import report
    from rrm_jax.planning.plan import Assumptions, decoder_of, plan
    from rrm_jax.planning.search import analytic_plan
    from rrm_jax.planning.search import search as searched
    from rrm_jax.planning.topology import topology as described
    from rrm_jax.training.config import TrainConfig

    # Compilers of devices that are not here cannot read their programs back, and how long they take is reported.
    jax.config.update("jax_enable_compilation_cache", False)
    resolved = load_config(TrainConfig, config, overrides or [])
    assumed = Assumptions(prompt_tokens, new_tokens, efficiency)

    def progress(one: "Footprint") -> None:
        warn(f"{one.name}: {one.total / 2**30:.2f} GiB on a device, {one.seconds:.0f} s to compile")

    decoder, devices = decoder_of(resolved, model), described(topology, compiling=not analytic)
    if search:
        tried, best = searched(resolved, decoder, devices, assumed, 0 if analytic else compiled, warn)
        made = best.plan
        print("\n".join([*report.proposal_lines(tried), ""]))
        print(f"best: {best}" if made.fits else f"none of these fits; --compile more than {compiled}. The last: {best}")
    elif analytic:
        made = analytic_plan(resolved, decoder, devices, assumed)
    else:
        made = plan(resolved, decoder, devices, assumed, tuple(only or ()), progress)
    print("\n".join(report.lines(made)))
    if not made.fits:
        raise typer.Exit(1)
