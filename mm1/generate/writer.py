"""Texts, likelihoods and image features that a model gives for Documents."""

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from mm1.data.encode import encode
from mm1.data.tiles import overview
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Image
from mm1.generate.beam import BeamSearch, search_all
from mm1.generate.document_prompt import DocumentPrompts
from mm1.generate.engine import Engine
from mm1.generate.prompt import IMAGES_PER_PASS, Prompt
from mm1.generate.request import Completion, Score
from mm1.generate.sampling import Decoding
from mm1.model.mllm import MLLM

Done = Callable[[int], None]
"""Called with the number of documents that were finished since the last call."""


class Writer:
    """A model and its tokenizer behind one interface of Documents: what evaluation, chat and a server talk to.

    Up to `rows` documents are worked on at once. The engine keeps image features and recent prompts from call to call.
    """

    def __init__(self, model: MLLM, tokenizer: Tokenizer, *, rows: int):
        self.tokenizer = tokenizer
        self.engine = Engine(model, rows=rows)
        self._prompts = DocumentPrompts(model.config, tokenizer)

    def write(
        self,
        documents: Sequence[Document],
        *,
        max_tokens: int,
        stops: Sequence[str] = (),
        beams: int = 1,
        done: Callable[[int, str], None] = lambda number, text: None,
    ) -> list[str]:
        """What the model writes after each document, up to a stop string or an end token.

        Decoding is greedy, or a beam search with more than one of `beams`. `done` is called with the number and the
        text of each document as soon as it is answered.
        """
        decoding = Decoding(max_tokens=max_tokens, stop_tokens=self.tokenizer.ends, stopped=self._stopped(stops))
        prompts = [self._prompts.prompt(self._prompts.encode(document)) for document in documents]

        def finished(number: int, completion: Completion) -> None:
            done(number, until(self.tokenizer.decode(completion.tokens), stops))

        if beams > 1:
            completions = search_all(
                self.engine.model,
                prompts,
                how=BeamSearch(decoding, width=beams),
                features=self.engine.features,
                done=finished,
            )
        else:
            completions = self.engine.generate(prompts, decoding, done=finished)
        return [until(self.tokenizer.decode(completion.tokens), stops) for completion in completions]

    def losses(self, documents: Sequence[Document], *, done: Done = lambda count: None) -> np.ndarray:
        """The mean loss [documents] of each document's trained tokens, in nats per token."""
        losses = []
        for start in range(0, len(documents), self.engine.rows):
            pairs = []
            for document in documents[start : start + self.engine.rows]:
                whole = encode(document, self.tokenizer, tile=self._prompts.tile)
                before = whole.untrained()
                pairs.append((self._prompts.prompt(before), whole.tokens[whole.train].tolist()))
            losses += [-score.log_probability / score.tokens for score in self.engine.score(pairs)]
            done(len(pairs))
        return np.array(losses)

    def score(
        self,
        documents: Sequence[Document],
        continuations: Sequence[Sequence[str]],
        *,
        done: Callable[[int, list[Score]], None] = lambda number, scores: None,
    ) -> list[list[Score]]:
        """The score of each of a document's continuations as the text that follows it.

        `done` is called with a document's number and scores as soon as all of them are known.
        """
        pairs, owners = [], []
        for number, (document, texts) in enumerate(zip(documents, continuations, strict=True)):
            prompt = self._prompts.prompt(self._prompts.encode(document))
            pairs += [(prompt, self.tokenizer.encode(text)) for text in texts]
            owners += [(number, rank) for rank in range(len(texts))]
        scores: list[dict[int, Score]] = [{} for _ in documents]

        def scored(pair: int, score: Score) -> None:
            number, rank = owners[pair]
            scores[number][rank] = score
            if len(scores[number]) == len(continuations[number]):
                done(number, [scores[number][rank] for rank in range(len(continuations[number]))])

        # all in one call, so that the engine computes shared examples and questions once
        of_pairs = iter(self.engine.score(pairs, done=scored))
        return [list(islice(of_pairs, len(texts))) for texts in continuations]

    def score_tokens(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """The score of each pair's second tokens after its first ones, for harnesses that tokenize themselves."""
        return self.engine.score([(Prompt(before), after) for before, after in pairs])

    def features(self, images: Sequence[Image]) -> np.ndarray:
        """Each image's mean image token as the decoder reads it, float32 [images, width]."""
        parts = []
        for start in range(0, len(images), IMAGES_PER_PASS):
            tiles = [overview(image, self._prompts.tile) for image in images[start : start + IMAGES_PER_PASS]]
            pictures = [picture for tile in tiles for picture in self._prompts.pictures((tile,))]
            features_NSD = self.engine.features.of(pictures)[:, : self._prompts.tile.tokens]
            parts.append(features_NSD.mean(dim=1).float().cpu().numpy())
        return np.concatenate(parts)

    def prompt_tokens(self, document: Document) -> int:
        """How many tokens the document takes as a prompt, its image tokens included."""
        return len(self._prompts.encode(document).tokens)

    def _stopped(self, stops: Sequence[str]) -> Callable[[list[int]], bool] | None:
        if not stops:
            return None
        return lambda tokens: until(text := self.tokenizer.decode(tokens), stops) != text


def until(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first stop string in it."""
    return text[: min((start for stop in stops if (start := text.find(stop)) >= 0), default=None)]
