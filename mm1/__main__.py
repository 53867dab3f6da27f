"""The command line: `mm1 COMMAND`. Each function reads its options, calls the package that does the work, prints.

Commands import the packages they need themselves, so that `mm1 --help` answers at once.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mm1.ablate import law_command
from mm1.ablate.command import ablate
from mm1.config.options import (
    Assignments,
    Dtype,
    Precise,
    PrecisionName,
    Recipe,
    RunFolder,
    RunnerName,
    To,
    refuse_renamed_options,
)
from mm1.config.sample import is_run, run_folder
from mm1.eval.options import evaluate
from mm1.serve.options import serve

if TYPE_CHECKING:
    from mm1.config.run import RunConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="An open MM1: train, evaluate and use multimodal language models.",
)
app.add_typer(law_command.app, name="law")


@app.command(epilog="Examples: `mm1 demo`, `mm1 demo --seed 1 --to runs/demo-1`")
def demo(
    to: Annotated[Path, typer.Option("--to", help="Folder of the demo's runs.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the trainings; another one needs another folder.", min=0)] = 0,
) -> None:
    """Train, evaluate and fine-tune a tiny model on the shipped sample; about 15 minutes on two cores.

    If it is stopped, the same command continues it.
    """
    from mm1.demo import run_demo
    from mm1.train.continued import continues

    with continues():
        run_demo(to, seed=seed)


@app.command(
    epilog="Examples: `mm1 train tiny steps=300 --to runs/longer`, `mm1 train mine.py:wide`, "
    "`torchrun --nproc-per-node 8 -m mm1 train mm1_3b parallel.activation_checkpointing=selective --to runs/3b`"
)
def train(
    recipe: Recipe,
    assignments: Assignments = None,
    to: To = None,
    continue_to: Annotated[
        int | None, typer.Option(help="Go on with the run in --to up to this step, which may be beyond its last.")
    ] = None,
) -> None:
    """Train a run from a recipe. The same command continues a run that was stopped.

    Without --to the run's folder is runs/RECIPE. Start it with torchrun on several GPUs or machines; parallel.* fields
    set the parallelism. On SIGTERM it saves a checkpoint and exits with code 143. With start_from.vision=RUN,
    start_from.decoder=RUN or start_from.model=RUN the run takes shapes and tokenizer of what it starts from, of a whole
    model also image size and tiles.
    """
    from mm1 import dist
    from mm1.train.continued import continues
    from mm1.train.run import train_run

    more = [f"steps={continue_to}"] if continue_to else []
    run = _run(recipe, [*(assignments or []), *more])
    with continues():
        folder = train_run(run, to or Path("runs") / run.recipe, longer=continue_to is not None)
    if dist.rank() == 0:
        typer.echo(f"trained: {folder}")


@app.command(
    epilog="Examples: `mm1 budget mm1_30b --gpus 256 --gpu h100`, "
    "`mm1 budget mm1_30b parallel.dp_shard=64 parallel.dp_replicate=4 --gpus 256 --gpu h100 --json budget.json`, "
    "`mm1 budget mm1_3b_sft --serve --gpu l40s --max-length 4096`, "
    "`mm1 budget runs/3b/config.json --serve --gpu cpu --memory 32GB --max-concurrent 16`"
)
def budget(
    recipe: Recipe,
    assignments: Assignments = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs there are.", min=1)] = 8,
    gpu: Annotated[str, typer.Option(help="a100, h100, h200, l40s, or cpu: this machine, measured now.")] = "h100",
    to_json: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Size a server of the run on one GPU instead.")] = False,
    memory: Annotated[str, typer.Option(help="With --serve: memory to use, such as 16GB; else all there is.")] = "",
    max_concurrent: Annotated[
        int | None, typer.Option(help="With --serve: answers written at a time; else as many as fit.", min=1)
    ] = None,
    max_length: Annotated[int, typer.Option(help="With --serve: tokens of a prompt with its answer.", min=16)] = 2048,
    kept_prompts: Annotated[int, typer.Option(help="With --serve: rows that only remember prompts.", min=0)] = 8,
    image_cache: Annotated[str, typer.Option(help="With --serve: image features kept.")] = "1GB",
) -> None:
    """Predict the memory, arithmetic, time and GPU-hours of a run; with --serve, what a server of it takes and bears.

    No GPU is needed. Without parallel.* fields it looks for the fastest layout that fits. What doesn't fit is an error.
    """
    from mm1.budget.report import choose_budget, explain_misfit, make_planner, save_json, tables
    from mm1.train.log import console

    run = _run(recipe, assignments)
    if serve:
        from mm1.budget.serving import ServingPlanner, device_of, explain_serving, save_serving, serving_tables
        from mm1.hf.shards import bytes_of
        from mm1.serve.limits import Limits

        limits = Limits(max_length=max_length, kept_prompts=kept_prompts, max_feature_bytes=bytes_of(image_cache))
        server = ServingPlanner(run, device_of(gpu, memory=bytes_of(memory) if memory else None))
        sized = server.budget(replace(limits, max_concurrent=max_concurrent)) if max_concurrent else server.most(limits)
        console.print(*serving_tables(server, sized), sep="\n", highlight=False, soft_wrap=True)
        if to_json:
            save_serving(server, sized, to_json)
        if not sized.fits:
            raise ValueError(explain_serving(server, sized))
        return
    planner = make_planner(run, gpu=gpu, gpus=gpus)
    with console.status("simulating"):
        choice = choose_budget(planner, gpus)
    console.print(*tables(choice, name=run.recipe, gpu=gpu), sep="\n", highlight=False, soft_wrap=True)
    if to_json:
        save_json(choice, to_json, name=run.recipe, gpu=gpu)
    if not choice.fits:
        raise ValueError(explain_misfit(planner, choice))


@app.command(epilog="Examples: `mm1 doctor`, `mm1 doctor --json > machine.json`")
def doctor(to_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine has, what a run will use of it, and what is missing with the command that installs it."""
    from mm1.doctor import describe_machine

    typer.echo(describe_machine(as_json=to_json))


app.command(
    epilog="Examples: `mm1 ablate connector --dry-run`, `mm1 ablate mix --workers 2 --to runs/mix`, "
    "`mm1 ablate connector --seeds 1 steps=20`, `mm1 ablate encoder --scale paper --dry-run`"
)(ablate)


app.command(
    "eval",
    epilog="Examples: `mm1 eval runs/demo/tiny --shots 0,4,8 --limit 200`, "
    "`mm1 eval runs/3b --tasks vqav2,coco --data benchmarks --trials 3`, "
    "`mm1 eval runs/3b --tasks vqav2,coco --data benchmarks --runner ray --workers 8`, "
    "`mm1 eval hf:llava-1.5-7b --tasks mmbench --data MMBench --shots 0`, `mm1 eval --compare runs/a runs/b`",
)(evaluate)


@app.command(epilog='Example: `mm1 chat runs/demo/tiny_sft --image cat.png "Is there a circle?"`')
def chat(
    folder: RunFolder,
    question: Annotated[str, typer.Argument(help="What to ask, or the text to continue.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image; give the option again for more.")] = None,
    tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 64,
    precision: Precise = PrecisionName.auto,
) -> None:
    """Ask a trained run about images. A run that was not fine-tuned on chats continues the text instead."""
    from mm1.checkpoint import load_for_use
    from mm1.serve.chat import answer

    text = answer(load_for_use(folder, precision=precision.value), question, images=image or [], tokens=tokens)
    typer.echo(text)
    if not text.strip():
        typer.echo("the model wrote no text: it ended its answer at once, or wrote white space", err=True)


app.command(
    epilog="Examples: `mm1 serve runs/demo/tiny_sft`, `MM1_API_KEY=secret mm1 serve runs/demo/tiny --host 0.0.0.0`"
)(serve)


@app.command(
    epilog="Examples: `mm1 show runs/demo/tiny --sequence 41`, `mm1 show runs/demo/tiny --mix`, "
    "`mm1 show runs/smollm2 --model`, `mm1 show sample:captions-test --row 3`"
)
def show(
    what: Annotated[str, typer.Argument(metavar="RUN|STORE", help="A run's folder or a document store.")],
    number: Annotated[
        int, typer.Option("--sequence", "--row", help="Sequence of the run, or row (document) of the store.", min=0)
    ] = 0,
    mix: Annotated[bool, typer.Option("--mix", help="Show the shares of the run's sources over its steps.")] = False,
    model: Annotated[bool, typer.Option("--model", help="Say what the run's model is; no page is written.")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="HTML file to write.")] = None,
) -> None:
    """Write an HTML page of one packed sequence of a run, of one document of a store, or of a run's mix."""
    if model:
        from mm1.exchange.description import description

        typer.echo(description(run_folder(what)))
        return
    if mix:
        from mm1.report.mix import mix_page

        page = mix_page(run_folder(what))
    else:
        from mm1.report.sequence import run_sequence_page, store_document_page

        page = run_sequence_page(run_folder(what), number) if is_run(what) else store_document_page(what, number)
    target = to or Path(f"{Path(what.replace(':', '-')).name}-{'mix' if mix else number}.html")
    target.write_text(page)
    typer.echo(f"page: {target}")


@app.command(epilog="Example: `mm1 report runs/demo/tiny`")
def report(folder: RunFolder) -> None:
    """Write RUN/report.html: losses, few-shot scores, sample answers, the real mix of sources."""
    from mm1.report.page import report as write_report

    typer.echo(f"report: {write_report(folder)}")


@app.command(
    epilog="Examples: `mm1 prepare laion/ --to captions --workers 8`, "
    "`mm1 prepare site/ crawl.warc.gz filters=gopher,c4 language=en max_image_repeats=10 --to pages`, "
    "`mm1 prepare talk.json pictures=coco/train2017 decontaminate=sample:vqa-test --to chats`, "
    "`mm1 prepare task:vqav2 data=VQAv2 --to sft/vqav2`, "
    "`mm1 prepare laion/ --runner ray --address ray://head:10001 --workers 64 --to captions`"
)
def prepare(
    words: Annotated[
        list[str],
        typer.Argument(metavar="INPUT... [FIELD=VALUE ...]", help="Files and folders, and what is kept of them."),
    ],
    to: To = None,
    kind: Annotated[str, typer.Option(help="Kind of the input; detected from its files by default.")] = "",
    key: Annotated[str, typer.Option(help="What names a sample in a tar: first-dot or last-dot.")] = "",
    workers: Annotated[int, typer.Option(help="Shards processed at once.", min=1)] = 1,
    runner: Annotated[RunnerName, typer.Option(help="native: on this machine. ray: on a cluster.")] = RunnerName.native,
    address: Annotated[str, typer.Option(help="Address of the Ray cluster; without it Ray is started here.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="End with status 3 if any input was unreadable.")] = False,
) -> None:
    """Turn what you have into document stores, clean and without copies, with a card beside them.

    Reads tars, parquet, JSON lines, LLaVA and COCO files, folders of pictures or pages, WARC; task:NAME makes chats of
    the training split of an evaluation task. Fields such as filters=gopher,c4 max_side=512
    decontaminate=sample:captions-test say what is kept. What was left out, and why, is counted at the end. A stopped
    command continues when it is given again. If a part of the input fails, the status is 3.
    """
    from mm1.cluster import Runner
    from mm1.eval.training_chats import TrainingChats
    from mm1.prepare.merge import NothingLeftError
    from mm1.prepare.pipeline import prepare as prepare_inputs
    from mm1.prepare.request import parse_request
    from mm1.prepare.summary import exit_status, failure_lines, ledger_lines, summary_lines

    request = parse_request([*words, *([f"key={key}"] if key else [])], kind=kind)
    folder = to or Path(f"{Path(request.inputs[0].path).resolve().name.replace(':', '-')}-prepared")
    nodes = Runner(runner.value, address, workers)
    try:
        result = prepare_inputs(request, folder, chats_of=TrainingChats, runner=nodes, show=True)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command continues with the missing shards", err=True)
        os._exit(130)  # not sys.exit: a thread of Daft may still be at work, and Python aborts when it ends under one
    except NothingLeftError as nothing:
        if not nothing.result.failed:
            raise
        result, lines = nothing.result, ledger_lines(nothing.result.ledger)
    else:
        lines = summary_lines(result, folder)
    for line in lines:
        typer.echo(line)
    for line in failure_lines(result):
        typer.echo(line, err=True)
    raise typer.Exit(exit_status(result, strict=strict))


@app.command(epilog="Example: `mm1 tokenize pages.lance --tokenizer tokenizer.json`")
def tokenize(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A document store.")],
    tokenizer: Annotated[str, typer.Option(help="A tokenizer.json, a folder with one, or `sample`.")] = "sample",
) -> None:
    """Add the tokens of its texts to a store, so that training reads them. Texts and images stay as they are."""
    from rich.progress import Progress

    from mm1.data.store import open_store
    from mm1.data.tokenized import tokenize_store
    from mm1.data.tokenizer import load_tokenizer

    opened, loaded = open_store(store), load_tokenizer(tokenizer)
    with Progress(transient=True) as progress:
        task = progress.add_task("tokenizing", total=2 * len(opened))
        added = tokenize_store(opened, loaded, name=tokenizer, progress=lambda count: progress.advance(task, count))
    typer.echo(f"added: {', '.join(added)}" if added else f"{store} has the tokens of {loaded.fingerprint} already")


@app.command(
    epilog="Examples: `mm1 export runs/demo/tiny_sft --to published/tiny_sft`, "
    "`mm1 export runs/adapted --adapter --to published/adapter`"
)
def export(
    folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="Folder to write to.")],
    dtype: Annotated[Dtype, typer.Option(help="Type of the weights; stored: as in the checkpoint.")] = Dtype.stored,
    shard_size: Annotated[str, typer.Option(help="Size of the largest file.")] = "5GB",
    adapter: Annotated[bool, typer.Option("--adapter", help="Of a run with LoRA only the adapter, for PEFT.")] = False,
    license_id: Annotated[str, typer.Option("--license", help="Of the card, as the hub names it: apache-2.0.")] = "",
) -> None:
    """Write a run's newest checkpoint in the layout of Hugging Face's `transformers`, with a model card.

    It becomes a LLaVA, Llama, Qwen, Mixtral, CLIP, ... if it is one, else a model with its own modelling file.
    LoRA is merged into the weights; --adapter writes it alone, in PEFT's layout.
    """
    from mm1.exchange.export import export_adapter, export_run
    from mm1.hf.shards import bytes_of

    if adapter:
        base = export_adapter(folder, to, dtype=dtype.value)
        typer.echo(f"exported: {to} (for `peft`, on the export of {base})")
        return

    form = export_run(folder, to, dtype=dtype.value, shard_bytes=bytes_of(shard_size), license_id=license_id)
    how = "" if form.native else ", which needs trust_remote_code=True"
    typer.echo(f"exported: {to} ({form.config['architectures'][0]}{how})")


@app.command("import", epilog="Example: `mm1 import HuggingFaceTB/SmolLM2-135M --to runs/smollm2`")
def import_model(
    model: Annotated[str, typer.Argument(help="A model's folder, a .gguf file, or a name on the hub.")],
    to: Annotated[Path, typer.Option("--to", help="Folder of the new run.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of a tokenizer.json to take for a language model's own.")
    ] = None,
) -> None:
    """Make a run from a published model: a language model, an image encoder, a LLaVA, or an export of mm1.

    Llama, Mistral, Mixtral, Qwen, Gemma, Phi, OLMo, SmolLM; CLIP, SigLIP, ViT, DINOv2, DINOv3, AIMv2, OpenCLIP, DFN;
    LLaVA, InternVL, Idefics3, SmolVLM. Train it further with `mm1 train FOLDER/config.json`, or start another run from
    it with start_from.decoder=FOLDER, start_from.vision=FOLDER or start_from.model=FOLDER.
    """
    from mm1.exchange.description import description
    from mm1.exchange.importing import import_model as import_published

    done = import_published(model, to, tokenizer=tokenizer)
    typer.echo(f"imported: {done.folder}\n{description(done.folder)}")


def _run(recipe: str, assignments: list[str] | None) -> "RunConfig":
    """The run that a command's arguments describe."""
    from mm1.recipes.index import recipe as find_recipe
    from mm1.recipes.starts import with_starts

    return with_starts(find_recipe(recipe), assignments or [])


def main() -> None:
    """Run a command. A user's mistake is one line and exit code 2; MM1_TRACEBACK=1 shows where it arose."""
    # Threads that wait for each other give the core away after a microsecond instead of a tenth of a second: where
    # something else runs too, a step on a CPU is twice as fast, and nowhere slower. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        refuse_renamed_options(sys.argv[1:])
        app()
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if os.environ.get("MM1_TRACEBACK"):
            raise
        if isinstance(error, RuntimeError) and type(error).__module__.partition(".")[0] != "mm1":
            raise  # a fault of ours, not a user's mistake
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
