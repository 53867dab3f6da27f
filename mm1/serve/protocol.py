"""Requests of OpenAI's protocol, checked field by field."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

Number = StrictInt | StrictFloat
TokenId = Annotated[StrictInt, Field(ge=0, lt=2**31)]


class Fields(BaseModel):
    """An object of which only the named fields may be sent."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Fields):
    """A piece of text."""

    type: Literal["text"]
    text: StrictStr


class ImageUrl(Fields):
    """Where a picture is: a data: address with its bytes, or http(s) where the server allows it."""

    url: StrictStr
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Fields):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]

Parts = Annotated[list[Part], Field(min_length=1, max_length=1024)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20)]
T = TypeVar("T")
Many = Annotated[list[T], Field(min_length=1, max_length=128)]


class Message(Fields):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[Part], Field(max_length=1024)] | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    # clients send these, some of them back with an answer; they change nothing here
    name: Any = None
    type: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: None = None
    function_call: None = None
    tool_call_id: None = None
    reasoning: Any = None
    reasoning_content: Any = None
    reasoning_details: Any = None  # OpenRouter's
    thinking_blocks: Any = None  # LiteLLM's
    provider_specific_fields: Any = None
    parsed: Any = None  # of OpenAI's client, with an answer of a given form


class StreamOptions(Fields):
    """What a stream has beside the text."""

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None


class JsonSchema(Fields):
    """A schema that the answer must fit."""

    name: Annotated[StrictStr, Field(max_length=64)] = "answer"
    description: StrictStr | None = None
    schema_: Annotated[dict[str, Any] | StrictBool, Field(alias="schema")] = True
    strict: StrictBool | None = None


class ResponseFormat(Fields):
    """What form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Fields):
    """vLLM's extension: one of these constrains the answer."""

    choice: Annotated[list[StrictStr], Field(min_length=1, max_length=1000)] | None = None
    json_: Annotated[dict[str, Any] | StrictStr | None, Field(alias="json")] = None
    regex: StrictStr | None = None
    grammar: StrictStr | None = None
    json_object: StrictBool | None = None


class SamplingRequest(Fields):
    """What both kinds of requests say of how the answer is written."""

    model: StrictStr | None = None
    temperature: Annotated[Number, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, lt=2**31)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[StrictStr, Field(max_length=1000)]
        | Annotated[list[Annotated[StrictStr, Field(max_length=1000)]], Field(max_length=16)]
        | None
    ) = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    logit_bias: (
        Annotated[
            dict[StrictStr, Annotated[Number, Field(ge=-100, le=100, allow_inf_nan=False)]], Field(max_length=1000)
        ]
        | None
    ) = None
    ignore_eos: StrictBool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # clients send these; they change nothing here
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        """How many answers to one prompt are asked for."""
        return self.n or 1

    @property
    def usage_in_stream(self) -> bool:
        """Whether the stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(SamplingRequest):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    parallel_tool_calls: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(SamplingRequest):
    """The body of /v1/completions. Beside OpenAI's forms, a prompt may be a list of texts and pictures."""

    prompt: StrictStr | Many[StrictStr] | Ids | Many[Ids] | Parts | Many[Parts]
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: StrictBool | None = None
    best_of: Annotated[StrictInt, Field(ge=1)] | None = None
    suffix: Annotated[StrictStr, Field(max_length=0)] | None = None


class TokenizeRequest(Fields):
    """The body of /tokenize, with these fields of vLLM's: a text, or messages as the model would see them."""

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)] | None = None
    add_special_tokens: StrictBool | None = None
    return_token_strs: StrictBool | None = None


class DetokenizeRequest(Fields):
    """The body of /detokenize."""

    model: StrictStr | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]
