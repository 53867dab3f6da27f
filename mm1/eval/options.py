"""`mm1 eval`: its options, and the call that they make."""

from pathlib import Path
from typing import Annotated

import typer

from mm1.config.options import Precise, PrecisionName, RunnerName, To, one_of, whole_number


def evaluate(
    what: Annotated[str, typer.Argument(metavar="RUN|hf:FOLDER|http://...", help="The model to evaluate.")] = "",
    tasks: Annotated[str, typer.Option(help="Names by commas; text; of encoders retrieval,knn,probe.")] = "captions",
    shots: Annotated[str, typer.Option(help="Numbers of examples before each query, comma-separated.")] = "0,4,8",
    limit: Annotated[int, typer.Option(help="Maximum number of queries per task.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Seed for drawing shots and queries.")] = 0,
    data: Annotated[str, typer.Option(help="Folder of a published data set, or of one folder per task.")] = "",
    split: Annotated[str, typer.Option(help="Split of the queries; each task has its own default.")] = "",
    form: Annotated[str, typer.Option(help="plain: a text to continue; chat: a user's turn; default by task.")] = "",
    runner: Annotated[RunnerName, typer.Option(help="native: here or on torchrun's ranks; ray.")] = RunnerName.native,
    workers: Annotated[int, typer.Option(help="Workers on Ray; each holds the model.", min=1)] = 1,
    address: Annotated[str, typer.Option(help="Address of the Ray cluster; without it Ray is started here.")] = "",
    protocol: Annotated[str, typer.Option(help="Whose rules: mm1, openflamingo, lmms-eval, official.")] = "default",
    trials: Annotated[int, typer.Option(help="How many times shots are drawn.", min=1)] = 1,
    same_shots: Annotated[bool, typer.Option("--same-shots", help="The same shots for all queries.")] = False,
    similar_shots: Annotated[bool, typer.Option("--similar-shots", help="Shots with similar images: RICES.")] = False,
    text_only_shots: Annotated[int, typer.Option(help="At zero shots: examples without images.", min=0)] = 0,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Chain-of-thought shots.")] = False,
    subimage_shots: Annotated[int | None, typer.Option(help="Query, last N shots also as sub-images.", min=0)] = None,
    scoring: Annotated[str, typer.Option(help="generate, or rank the choices by loglikelihood.")] = "generate",
    beams: Annotated[int, typer.Option(help="Beams when generating; 1 is greedy.", min=1)] = 1,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens; 0: as the task says.", min=0)] = 0,
    judge: Annotated[str, typer.Option(help="Server whose model judges open answers, http://.../v1.")] = "",
    judge_model: Annotated[str, typer.Option(help="The judge's name on its server.")] = "",
    judge_prompt: Annotated[Path | None, typer.Option(help="File: {question}, {reference}, {answer}.")] = None,
    model: Annotated[str, typer.Option(help="The model's name on an http:// server.")] = "",
    precision: Precise = PrecisionName.auto,
    list_tasks: Annotated[bool, typer.Option("--list", help="Show all tasks with size, source and licence.")] = False,
    compare: Annotated[tuple[Path, Path] | None, typer.Option(help="Compare two runs query by query instead.")] = None,
    to: To = None,
) -> None:
    """Score a model few-shot, with the blind, majority and chance scores beside each score.

    Answers, scores and a page of the answers go to RUN/eval. Replies that are kept there are not asked for again.
    """
    from mm1.cluster import Runner
    from mm1.eval import command
    from mm1.eval.shots import RULES, SCORINGS, Protocol

    if list_tasks or compare is not None:
        command.show_tasks() if compare is None else command.compare_runs(*compare)
        return
    if not what:
        raise ValueError("name a run's folder, hf:FOLDER or http://... of a server, or give --compare A B")
    names, counts = [name.strip() for name in tasks.split(",")], [whole_number(n, "--shots") for n in shots.split(",")]
    draw = command.draw_of(same_shots=same_shots, similar_shots=similar_shots)
    scored, rules = one_of(scoring, "--scoring", SCORINGS), one_of(protocol, "--protocol", RULES)
    shown = Protocol(draw, text_only_shots, reasoning, subimage_shots, scored, beams, max_tokens, rules)
    command.EvalCommand(
        model=command.ModelAddress(what, model, precision.value),
        tasks=command.TaskOptions(
            tuple(names), limit, seed, data, split, one_of(form, "--form", ("", "plain", "chat"))
        ),
        shots=command.ShotOptions(tuple(counts), trials, command.under_rules(shown)),
        judge=command.ModelAddress(judge, judge_model),
        judge_prompt=judge_prompt,
        to=to,
        runner=Runner(runner.value, address, workers),
    ).run()
