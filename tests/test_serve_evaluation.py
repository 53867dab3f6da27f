"""Evaluation through a server gives what evaluation of the run gives: answers one by one, and lm-eval's scores."""

import json
from pathlib import Path

import pytest
import serving
import torch
from test_serve import chat_run, plain_run  # noqa: F401  (fixtures)
from text_data import scores_of_lm_eval, scores_of_mm1, write_answered_data

from mm1.checkpoint import Loaded
from mm1.eval.harness import evaluate, load_task
from mm1.eval.models import Ours, open_model
from mm1.eval.results import read_answers
from mm1.eval.task_evaluation import Settings
from mm1.exchange.export import export_run
from mm1.serve.limits import Limits


def answers(model, folder: Path, names: list[str]) -> dict[str, list[str]]:
    tasks = [load_task(name, limit=6, seed=0) for name in names]
    scores = evaluate(model, tasks, settings=Settings(folder), shots=(0, 2)).scores
    return {score.name: [answer.text for answer in read_answers(folder, score)] for score in scores}


@pytest.mark.parametrize(("kind", "names"), [("chat", ["captions", "easy_vqa"]), ("plain", ["captions"])])
def test_a_served_run_answers_an_evaluation_as_the_run_does(kind, names, tmp_path, request):
    """Captions are continued texts, and easy_vqa is a chat."""
    loaded: Loaded = request.getfixturevalue(f"{kind}_run")
    direct = answers(Ours(loaded.model, loaded.tokenizer, name="run"), tmp_path / "direct", names)
    with serving.running(loaded, limits=Limits(max_concurrent=4, max_length=1024, max_prefill=64)) as server:
        served = answers(open_model(f"{server.base}/v1"), tmp_path / "served", names)
    assert direct.keys() == served.keys()
    assert len(direct) == 2 * len(names)
    assert served == direct
    assert len({text for texts in direct.values() for text in texts}) > 4


@pytest.mark.long
def test_lm_evals_own_command_scores_a_server_as_mm1_eval_scores_the_run(plain_run, tmp_path):  # noqa: F811
    """All nine tasks by lm-eval's own files, on rows of their layouts: both commands, as a user gives them."""
    pytest.importorskip("lm_eval")
    write_answered_data(tmp_path, Ours(plain_run.model, plain_run.tokenizer, name="run"))
    direct = scores_of_mm1(tmp_path, plain_run.folder)
    export_run(plain_run.folder, tmp_path / "export")
    with serving.running(plain_run) as server:
        about = f"base_url={server.base}/v1/completions,model=tiny,tokenizer={tmp_path / 'export'},add_bos_token=True"
        served = scores_of_lm_eval(
            tmp_path, "--model", "local-completions", "--model_args", f"{about},num_concurrent=4"
        )
    assert served == pytest.approx(direct)
    assert len(served) == 9
    assert len(set(served.values())) > 2
    assert served["triviaqa"] >= 50


@pytest.mark.nightly
@torch.no_grad()
def test_lm_evals_own_client_reads_the_likelihoods_of_the_text_suite(plain_run, tmp_path, monkeypatch):  # noqa: F811
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from mm1.eval.text_suite import TextModel

    rows = [
        {"question": f"The {colour} circle is", "choices": ["left", "right of it"], "gold": n % 2}
        for n, colour in enumerate(("red", "green", "blue", "white"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "made",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def scores(model):
        results = lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=True)
        return [[value[0] for value in sample["filtered_resps"]] for sample in results["samples"]["made"]], results[
            "results"
        ]

    ours = Ours(plain_run.model, plain_run.tokenizer, name="run")
    export_run(plain_run.folder, tmp_path / "export")
    with serving.running(plain_run) as server:
        served = LocalCompletionsAPI(
            base_url=f"{server.base}/v1/completions",
            model="tiny",
            tokenizer_backend="huggingface",
            tokenizer=str(tmp_path / "export"),
            add_bos_token=True,
        )
        through, through_scores = scores(served)
    direct, direct_scores = scores(TextModel(ours))
    assert through == [pytest.approx(nats, abs=1e-3) for nats in direct]
    assert through_scores["made"]["acc,none"] == direct_scores["made"]["acc,none"]
