"""How likely a model finds the right answer after a few-shot prompt: a continuous score beside accuracy and CIDEr."""

from mm1.eval.fewshot import Task
from mm1.eval.model import Model, Request
from mm1.eval.shots import DEFAULT, draw_all, prompts


def answer_likelihood(model: Model, task: Task, *, shots: int, seed: int) -> dict[str, float]:
    """The log-likelihood of each query's first right answer after its shots, in nats per token, by query.

    Prompts and shots are those of `mm1 eval` with the same seed.
    """
    drawn = draw_all(task, shots=shots, seed=seed, protocol=DEFAULT)
    documents = prompts(task, task.queries, drawn=drawn, shots=shots, protocol=DEFAULT)
    requests = [
        Request(document, choices=(query.answers[0],)) for document, query in zip(documents, task.queries, strict=True)
    ]
    nats = model.loglikelihoods(requests)
    return {query.id: value for query, (value,) in zip(task.queries, nats, strict=True)}
