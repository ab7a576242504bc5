"""``florist plan``: what a federation will cost, before it starts."""

from typing import Annotated

import typer

from florist.cli.options import AsJson, Quiet, Verbose
from florist.errors import ConfigurationError


def plan_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="A preset as llama-7b, a config.json, a directory with one, or a cached hub id."
        ),
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", help="The same as MODEL.")] = None,
    shapes: Annotated[
        str | None,
        typer.Option(help="In the place of MODEL: modules as NAME=OUTxIN*COUNT, as q_proj=4096x4096*32, with commas."),
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(
            help="The modules to adapt, as q_proj,v_proj, which are the paper's and the default; or all-linear."
        ),
    ] = None,
    ranks: Annotated[
        str, typer.Option(help="One rank for all; one a client, as 64,32,16; or rank:clients, as 4:40,8:20,16:20.")
    ] = "16",
    clients: Annotated[
        int | None, typer.Option(min=1, help="How many clients; by default as many as --ranks names, or 8.")
    ] = None,
    fraction: Annotated[float, typer.Option(help="The fraction of the clients that each round asks.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many rounds.")] = 1,
    tau_rank: Annotated[
        str | None,
        typer.Option(
            metavar="N|total:N|RUN",
            help="What tau keeps: rank N in each module, N in all modules together, or the ranks of a finished run. "
            "By default everything.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="What a preset says of codecs and starts: plain, compact or paper; compact is the default of FLoRIST "
            "in rounds. Without it, plain is planned."
        ),
    ] = None,
    upload: Annotated[
        str | None, typer.Option(help="The codec of uploads, as float16 or int4; by default that of --preset.")
    ] = None,
    download: Annotated[str | None, typer.Option(help="The codec of broadcasts; by default that of --preset.")] = None,
    upload_rank: Annotated[
        int | None, typer.Option(min=1, help="The rank that uploads are cut to, for methods that can cut them.")
    ] = None,
    local_init: Annotated[
        str | None,
        typer.Option(help="How local adapters start: fresh, aligned or warm; by default as --preset, else aligned."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="The dtype of the base: float32, bfloat16 or float16.")] = "float32",
    methods: Annotated[str, typer.Option(help="Aggregation methods, as florist,fedit,flora, or all.")] = "all",
    uplink: Annotated[str | None, typer.Option(help="A client's rate up, as 10Mbit, to know the seconds.")] = None,
    downlink: Annotated[str | None, typer.Option(help="A client's rate down, as 100Mbit.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="The bytes of all clients, rounds and both ways, as 5GB: which methods fit?")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tell what a federation will cost before it starts: bytes, memory and operations, by method.

    It takes the configuration of a model and no weights. Where every round asks every client, bytes are those that
    simulate then measures; else they are expectations, with what absent clients have to be sent later.
    """
    from florist.cli.output import Output  # noqa: PLC0415
    from florist.cli.plan_work import Question, parse_rate, parse_size, preset_defaults, report  # noqa: PLC0415

    if (model, model_option, shapes).count(None) != 2:
        raise ConfigurationError("expected one of MODEL, --model and --shapes, as florist plan llama-7b; give one")
    defaults = preset_defaults(preset or "plain")
    question = Question(
        model=model or model_option,
        shapes=shapes,
        target_modules=target_modules,
        ranks=ranks,
        clients=clients,
        fraction=fraction,
        rounds=rounds,
        tau_rank=tau_rank,
        preset=preset,
        upload=upload or defaults["upload"],
        download=download or defaults["download"],
        upload_rank=upload_rank,
        local_init=local_init or defaults["local_init"],
        dtype=dtype,
        methods=methods,
        uplink=parse_rate("--uplink", uplink) if uplink is not None else None,
        downlink=parse_rate("--downlink", downlink) if downlink is not None else None,
        budget=parse_size(budget) if budget is not None else None,
    )
    report(question, Output(as_json=as_json, quiet=quiet, verbose=verbose))
