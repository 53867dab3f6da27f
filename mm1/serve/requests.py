"""Requests as jobs of the scheduler."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from mm1.data.tokenizer import Tokenizer
from mm1.generate.prompt import Prompt
from mm1.generate.request import EngineRequest
from mm1.generate.sampling import Decoding
from mm1.serve.errors import invalid
from mm1.serve.limits import Limits
from mm1.serve.protocol import SamplingRequest
from mm1.serve.scheduler import Job
from mm1.serve.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class JobMaker:
    """Makes the jobs of a request: one for each answer to each prompt."""

    tokenizer: Tokenizer
    limits: Limits

    def jobs(
        self, prompts: Sequence[Prompt], request: SamplingRequest, *, max_tokens: int | None, alternatives: int
    ) -> list[Job]:
        """The jobs; answer number i takes its random numbers from stream i of the request's seed.

        Raises:
            ApiError: more answers than this server gives at once.
        """
        answers = len(prompts) * request.choices
        if answers > self.limits.max_choices:
            most = self.limits.max_choices
            raise invalid(f"the request asks for {answers} answers, and this server gives {most}", "n")
        seed = secrets.randbits(62) if request.seed is None else request.seed
        jobs = []
        for number in range(answers):
            prompt = prompts[number // request.choices]
            left = self.limits.max_length - len(prompt.tokens)
            text = TextStream(self.tokenizer, request.stops)
            decoding = Decoding(
                max_tokens=left if max_tokens is None else min(max_tokens, left),
                stop_tokens=frozenset() if request.ignore_eos else self.tokenizer.ends,
                stopped=text.push,
                temperature=1.0 if request.temperature is None else float(request.temperature),
                top_p=1.0 if request.top_p is None else float(request.top_p),
                top_k=max(0, request.top_k or 0),
                seed=seed,
                alternatives=alternatives,
            )
            jobs.append(Job(EngineRequest(prompt, decoding, stream=number), text))
        return jobs
