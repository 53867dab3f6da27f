"""`mm1 serve`: its options, and the call that they make."""

from typing import Annotated

import typer

from mm1.config.options import Precise, PrecisionName, RunFolder


def serve(
    folder: RunFolder,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: at all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 8000,
    name: Annotated[str, typer.Option(help="What clients call the model; by default as its folder is called.")] = "",
    api_key: Annotated[
        list[str] | None, typer.Option(help="Key that clients must send; or MM1_API_KEY, which no process list shows.")
    ] = None,
    max_concurrent: Annotated[int, typer.Option(help="Answers written at a time.", min=1)] = 32,
    max_waiting: Annotated[int, typer.Option(help="Answers that may wait; more requests get 429.", min=0)] = 256,
    max_length: Annotated[int, typer.Option(help="Tokens of a prompt with its answer.", min=16)] = 2048,
    allow_media_domains: Annotated[
        str, typer.Option(help="Hosts that pictures are fetched from, comma-separated; .example.org: all that end so.")
    ] = "",
    kept_prompts: Annotated[int, typer.Option(help="Rows of the cache that only remember prompts.", min=0)] = 8,
    image_cache: Annotated[str, typer.Option(help="Image features kept, for example 500MB.")] = "1GB",
    access_log: Annotated[bool, typer.Option(help="Write a line of JSON for each request.")] = True,
    precision: Precise = PrecisionName.auto,
) -> None:
    """Answer OpenAI's clients from a trained run: chat completions, completions with pictures, streaming.

    A run that was not fine-tuned on chats continues texts. SIGTERM ends it: what runs is completed first.
    """
    from mm1.hf.shards import bytes_of
    from mm1.serve.command import Address, Service, keys_of, serve_run
    from mm1.serve.limits import Limits

    limits = Limits(
        max_concurrent=max_concurrent,
        max_waiting=max_waiting,
        max_length=max_length,
        kept_prompts=kept_prompts,
        max_feature_bytes=bytes_of(image_cache),
    )
    domains = frozenset(domain.strip().lower() for domain in allow_media_domains.split(",") if domain.strip())
    service = Service(name, limits, keys_of(api_key or []), domains, access_log)
    serve_run(folder, service, address=Address(host, port), precision=precision.value)
