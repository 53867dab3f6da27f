"""Requests as jobs of the scheduler."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from mm1.data.tokenizer import Tokenizer
from mm1.generate.prompt import Prompt
from mm1.generate.request import EngineRequest
from mm1.generate.sampling import Decoding
from mm1.serve.errors import invalid
from mm1.serve.grammar import constraint, grammar_of
from mm1.serve.limits import Limits
from mm1.serve.protocol import SamplingRequest
from mm1.serve.scheduler import Job
from mm1.serve.text_stream import TextStream
from mm1.serve.token_names import TokenNames


@dataclass(frozen=True, slots=True)
class Output:
    """What a request wants: tokens at most (None: as many as there is room for), the likeliest others beside each, and
    whether it asks how likely the prompt's own tokens are."""

    max_tokens: int | None
    alternatives: int = 0
    reads_prompt: bool = False


@dataclass(frozen=True, slots=True)
class JobMaker:
    """Makes the jobs of a request: one for each answer to each prompt."""

    tokenizer: Tokenizer
    names: TokenNames
    limits: Limits

    def jobs(self, prompts: Sequence[Prompt], request: SamplingRequest, *, output: Output, salt: str) -> list[Job]:
        """The jobs; answer number i takes its random numbers from stream i of the request's seed.

        Raises:
            ApiError: more answers than this server gives at once.
        """
        answers = len(prompts) * request.choices
        if answers > self.limits.max_choices:
            most = self.limits.max_choices
            raise invalid(f"the request asks for {answers} answers, and this server gives {most}", "n")
        grammar, bias = grammar_of(request), self._bias(request)
        seed = secrets.randbits(62) if request.seed is None else request.seed
        jobs = []
        for number in range(answers):
            prompt = prompts[number // request.choices]
            left = self.limits.max_length - len(prompt.tokens)
            text = TextStream(self.tokenizer, request.stops)
            decoding = Decoding(
                max_tokens=left if output.max_tokens is None else min(output.max_tokens, left),
                stop_tokens=frozenset() if request.ignore_eos else self.tokenizer.ends,
                stopped=text.push,
                temperature=1.0 if request.temperature is None else float(request.temperature),
                top_p=1.0 if request.top_p is None else float(request.top_p),
                top_k=max(0, request.top_k or 0),
                seed=seed,
                alternatives=output.alternatives,
                presence_penalty=float(request.presence_penalty or 0),
                frequency_penalty=float(request.frequency_penalty or 0),
                bias=bias,
                constraint=None if grammar is None else constraint(grammar, self.names.guidance),
            )
            read = output.alternatives if output.reads_prompt else None
            jobs.append(Job(EngineRequest(prompt, decoding, number, salt=salt, prompt_alternatives=read), text))
        return jobs

    def _bias(self, request: SamplingRequest) -> dict[int, float]:
        bias = {}
        for name, value in (request.logit_bias or {}).items():
            if not (name.isascii() and name.isdigit() and int(name[:10]) < self.tokenizer.vocabulary):
                raise invalid(f"logit_bias takes token ids below {self.tokenizer.vocabulary}", "logit_bias")
            bias[int(name)] = float(value)
        return bias
