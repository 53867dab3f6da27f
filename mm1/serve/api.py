"""The routes of the server: OpenAI's protocol over one loaded run."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mm1.checkpoint import Loaded
from mm1.document import Document
from mm1.generate.prompt import Features, Prompt
from mm1.generate.serving import ServingEngine
from mm1.serve import protocol
from mm1.serve.access_log import AccessLog
from mm1.serve.answers import ChatForm, CompletionForm, Echo, Form, Head, Usage
from mm1.serve.checking import parse
from mm1.serve.errors import ApiError, invalid
from mm1.serve.guard import Guard
from mm1.serve.limits import Limits
from mm1.serve.media import Media
from mm1.serve.metrics import Metrics
from mm1.serve.openapi import document
from mm1.serve.page import page
from mm1.serve.prompts import Reader, addresses, chat_document, completion_document
from mm1.serve.reference import reference_page
from mm1.serve.reply import Reply, to_json
from mm1.serve.requests import JobMaker, Output
from mm1.serve.scheduler import Job, Scheduler
from mm1.serve.token_names import TokenNames


@dataclass(slots=True)
class Server:
    """One loaded run as a service. `name` is what clients call the model; no path of this machine is in it."""

    loaded: Loaded
    name: str
    limits: Limits = field(default_factory=Limits)
    keys: Sequence[str] = ()
    domains: frozenset[str] = frozenset()  # from which pictures are fetched
    media: Media = field(init=False)
    metrics: Metrics = field(init=False)
    scheduler: Scheduler = field(init=False)
    reader: Reader = field(init=False)
    names: TokenNames = field(init=False)
    pool: ThreadPoolExecutor = field(init=False)
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        loaded = self.loaded
        features = Features(loaded.model, memory=self.limits.max_feature_bytes)
        engine = ServingEngine(loaded.model, self.limits.sizes, features=features)
        self.metrics = Metrics(self.name)
        self.scheduler = Scheduler(engine, self.metrics, max_waiting=self.limits.max_waiting)
        self.metrics.watch("num_requests_running", "Answers that are written.", lambda: self.scheduler.running)
        self.metrics.watch("num_requests_waiting", "Answers that wait.", lambda: self.scheduler.waiting)
        self.metrics.watch("kv_cache_usage_perc", "Used share of the key/value cache.", lambda: engine.usage)
        size = self.limits.sizes.cache_bytes(loaded.model)
        self.metrics.watch("kv_cache_bytes", "Bytes of the key/value cache, which never change.", lambda: size)
        self.metrics.watch("image_cache_bytes", "Bytes of image features kept.", lambda: features.held)
        self.metrics.watch("image_cache_queries", "Tiles looked up in the image cache.", lambda: features.queries)
        self.metrics.watch("image_cache_hits", "Tiles that the image cache held.", lambda: features.hits)
        self.media = Media(self.limits, self.domains)
        self.reader = Reader.of(loaded, self.limits, features)
        pixels = self.reader.pixels
        self.metrics.watch("decoded_picture_bytes", "Bytes of pictures that prompts keep.", lambda: pixels.held)
        self.names = TokenNames(loaded.tokenizer, loaded.model.config.decoder.vocabulary)
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="prompts")

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = parse(await request.body(), protocol.ChatRequest)
        self._check_model(body.model)
        contents = [message.content for message in body.messages]
        document = await self._document(contents, lambda pictures: chat_document(body.messages, pictures, self.loaded))
        prompt = await self._in_pool(lambda: self.reader.prompt(document, salt=request.scope["client_salt"]))
        if body.top_logprobs and not body.logprobs:
            raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
        output = Output(body.max_completion_tokens or body.max_tokens, body.top_logprobs or 0)
        jobs = await self._jobs([prompt], body, output=output, salt=request.scope["client_salt"])
        form = ChatForm(Head("chatcmpl", self.name), self.names, bool(body.logprobs), body.usage_in_stream)
        return await self._reply(request, body, jobs, form=form, usage=Usage(len(prompt.tokens), body.choices))

    async def complete(self, request: Request) -> Response:
        """Continue texts, token ids, or lists of texts and pictures."""
        body = parse(await request.body(), protocol.CompletionRequest)
        self._check_model(body.model)
        if body.best_of is not None and body.best_of != body.choices:
            raise invalid("best_of is not supported; leave it out, or make it equal to n", "best_of")
        sources = _prompts_of(body.prompt)
        prompts, texts = [], []
        for source in sources:
            prompt, text = await self._completion_prompt(source, salt=request.scope["client_salt"])
            prompts.append(prompt)
            texts.append(text)
        logprobs = body.logprobs is not None
        output = Output(
            16 if body.max_tokens is None else body.max_tokens, body.logprobs or 0, bool(body.echo and logprobs)
        )
        jobs = await self._jobs(prompts, body, output=output, salt=request.scope["client_salt"])
        echoes = [
            Echo(text, prompt.tokens) for text, prompt in zip(texts, prompts, strict=True) for _ in range(body.choices)
        ]
        form = CompletionForm(
            Head("cmpl", self.name), self.names, logprobs, body.usage_in_stream, echoes if body.echo else []
        )
        usage = Usage(sum(len(prompt.tokens) for prompt in prompts), body.choices)
        return await self._reply(request, body, jobs, form=form, usage=usage)

    async def models(self, request: Request) -> Response:
        """The one model of this server."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The model of this name."""
        self._check_model(request.path_params["name"])
        return _json(self._model())

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a text, or of a conversation as the model sees it."""
        body = parse(await request.body(), protocol.TokenizeRequest)
        self._check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise invalid("send either prompt or messages")
        messages = body.messages or []
        salt = request.scope["client_salt"]
        if body.prompt is not None:
            prompt, _ = await self._completion_prompt(body.prompt, salt=salt)
        else:
            contents = [message.content for message in messages]
            document = await self._document(contents, lambda got: chat_document(messages, got, self.loaded))
            prompt = await self._in_pool(lambda: self.reader.prompt(document, salt=salt))
        tokens, begin = list(prompt.tokens), self.loaded.tokenizer.begin
        if body.prompt is not None and body.add_special_tokens is False:
            tokens = tokens[len(begin) :]
        answer = {"count": len(tokens), "max_model_len": self.limits.max_length, "tokens": tokens}
        names = self.loaded.tokenizer.spellings(tokens) if body.return_token_strs else None
        return _json(answer | {"token_strs": names})

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        body = parse(await request.body(), protocol.DetokenizeRequest)
        self._check_model(body.model)
        wrong = [token for token in body.tokens if token >= self.loaded.tokenizer.vocabulary]
        if wrong:
            raise invalid(f"{wrong[0]} is no token of this model", "tokens")
        return _json({"prompt": self.loaded.tokenizer.decode(body.tokens, special=True)})

    async def health(self, request: Request) -> Response:
        """Whether requests are taken."""
        healthy = self.scheduler.healthy
        return _json({"status": "ok" if healthy else "ending"}, 200 if healthy else 503)

    async def page(self, request: Request) -> Response:
        """A page to chat with the model."""
        return page()

    async def reference(self, request: Request) -> Response:
        """The routes and their fields, to read."""
        return reference_page(request.app.openapi())

    async def prometheus(self, request: Request) -> Response:
        """The metrics, for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def _model(self) -> dict[str, Any]:
        about = {"id": self.name, "object": "model", "created": self.started, "owned_by": "mm1"}
        capabilities = {"chat": self.loaded.chats, "pictures": self.loaded.sees}
        return about | {"max_model_len": self.limits.max_length, "capabilities": capabilities}

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            message = f"there is no model of that name here; it is {self.name}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def _document(self, contents: Sequence[Any], build: Callable[[dict], Document]) -> Document:
        """The Document that `build` makes of the pictures in the contents."""
        wanted = addresses(contents)
        if wanted and not self.loaded.sees:
            raise invalid("this model takes no pictures; ask it without image_url", "image_url")
        return build(await self.media.fetch(wanted))

    async def _completion_prompt(self, source: Any, *, salt: str) -> tuple[Prompt, str]:
        """A prompt and its text."""
        if isinstance(source, list) and isinstance(source[0], int):
            return self.reader.of_tokens(source), self.loaded.tokenizer.decode(source)
        document = await self._document([source], lambda pictures: completion_document(source, pictures))
        return await self._in_pool(lambda: self.reader.prompt(document, salt=salt)), document.text

    async def _jobs(
        self, prompts: Sequence[Prompt], body: protocol.SamplingRequest, *, output: Output, salt: str
    ) -> list[Job]:
        """The jobs. A schema may take a second to read, and many biases long: jobs with them are made in a thread."""
        maker = JobMaker(self.loaded.tokenizer, self.names, self.limits)
        if body.response_format is None and body.structured_outputs is None and not body.logit_bias:
            return maker.jobs(prompts, body, output=output, salt=salt)
        return await self._in_pool(lambda: maker.jobs(prompts, body, output=output, salt=salt))

    async def _reply(
        self, request: Request, body: protocol.SamplingRequest, jobs: Sequence[Job], *, form: Form, usage: Usage
    ) -> Response:
        deadline = time.monotonic() + self.limits.request_seconds
        reply = Reply(self.scheduler.submit(jobs, deadline=deadline), form, usage, request.scope["noted"])
        if body.stream:
            return await reply.stream(request.receive, usage=body.usage_in_stream)
        return await reply.whole(request.receive)

    async def _in_pool(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": protocol.ChatRequest,
    "/v1/completions": protocol.CompletionRequest,
    "/tokenize": protocol.TokenizeRequest,
    "/detokenize": protocol.DetokenizeRequest,
}
"""What each path takes by POST."""


def make_app(server: Server) -> Any:
    """The ASGI app of a server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.scheduler.start()
        yield
        await asyncio.to_thread(server.scheduler.stop)  # meanwhile clients get their last bytes
        for pool in (server.pool, server.media.pool):
            pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="mm1", lifespan=lifespan, docs_url=None, redoc_url=None)
    routes: list[tuple[str, str, Any]] = [
        ("POST", "/v1/chat/completions", server.chat),
        ("POST", "/v1/completions", server.complete),
        ("GET", "/v1/models", server.models),
        ("GET", "/v1/models/{name:path}", server.model),
        ("POST", "/tokenize", server.tokenize),
        ("POST", "/detokenize", server.detokenize),
        ("GET", "/health", server.health),
        ("GET", "/", server.page),
        ("GET", "/docs", server.reference),
        ("GET", "/metrics", server.prometheus),
    ]
    for method, path, answer in routes:
        app.add_api_route(path, answer, methods=[method], response_model=None)
    app.openapi = lambda: document(app, BODIES)  # type: ignore[method-assign]

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        request.scope["noted"]["error"] = error.code
        return _json(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, error: HTTPException) -> Response:
        words = {404: "there is no such route", 405: "this route takes another method"}
        message = words.get(error.status_code, "the request is not valid")
        return _json(ApiError(error.status_code, message).body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _json(ApiError(500, "the server failed at this request").body, 500)

    return AccessLog(Guard(app, keys=server.keys, limits=server.limits))


def _prompts_of(prompt: Any) -> list[Any]:
    """The prompts in a completion's field: each a text, a list of token ids, or a list of parts."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int | protocol.TextPart | protocol.ImagePart):
        return [prompt]
    return list(prompt)


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers=headers, media_type="application/json")
