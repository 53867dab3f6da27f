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
        list[str] | None, typer.Option(help="Key that clients must send; may be repeated. MM1_API_KEY stays out of ps.")
    ] = None,
    max_concurrent: Annotated[int, typer.Option(help="Answers written at a time.", min=1)] = 32,
    max_waiting: Annotated[int, typer.Option(help="Answers that may wait; more requests get 429.", min=0)] = 256,
    max_length: Annotated[int, typer.Option(help="Tokens of a prompt with its answer.", min=16)] = 2048,
    allow_media_domains: Annotated[
        str, typer.Option(help="Hosts that pictures are fetched from, comma-separated; .example.org: all that end so.")
    ] = "",
    kept_prompts: Annotated[int, typer.Option(help="Rows of the cache that only remember prompts.", min=0)] = 8,
    image_cache: Annotated[str, typer.Option(help="Image features kept, for example 500MB.")] = "1GB",
    max_prefill: Annotated[
        int, typer.Option(help="Positions of prompts computed between two tokens of the answers.", min=16)
    ] = 512,
    max_pictures: Annotated[int, typer.Option(help="Pictures of one request.", min=0)] = 32,
    max_picture: Annotated[str, typer.Option(help="Size of one picture as it is sent.")] = "20MB",
    max_body: Annotated[str, typer.Option(help="Size of one request; all at once may have 8 times as much.")] = "64MB",
    answer_within: Annotated[
        float, typer.Option(help="Seconds until an answer is complete, waiting included; then it is 504.", min=1)
    ] = 600,
    drain_within: Annotated[
        float, typer.Option(help="Seconds for what runs when the server is told to stop.", min=1)
    ] = 30,
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
        max_prefill=max_prefill,
        max_pictures=max_pictures,
        max_picture_bytes=bytes_of(max_picture),
        max_body_bytes=bytes_of(max_body),
        max_bodies_bytes=8 * bytes_of(max_body),
        request_seconds=answer_within,
        drain_seconds=drain_within,
    )
    domains = frozenset(domain.strip().lower() for domain in allow_media_domains.split(",") if domain.strip())
    if wrong := next((domain for domain in sorted(domains) if "/" in domain or "@" in domain), None):
        raise ValueError(f"--allow-media-domains {wrong}: give a host's name, such as example.org, without the rest")
    service = Service(name, limits, keys_of(api_key or []), domains, access_log)
    serve_run(folder, service, address=Address(host, port), precision=precision.value)
