"""The memory of a server, predicted and allocated, and what `mm1 budget --serve` prints."""

import gc
import json
import re
import shlex
from pathlib import Path

import pytest
import small
import torch
from allocations import most_alive
from small import doc
from test_generate import prompt
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from mm1.__main__ import app
from mm1.budget.serving import SAMPLING, Device, ServingPlanner, device_of
from mm1.config.run import DataConfig, RunConfig
from mm1.generate.request import EngineRequest
from mm1.generate.sampling import Decoding, sample_tokens
from mm1.generate.serving import ServingEngine
from mm1.model.mllm import MLLM
from mm1.serve.limits import Limits

PAGE = Path(__file__).parents[1] / "docs/serve.md"
BLOCK = re.compile(r"^```console\n\$ mm1 (budget [^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run() -> RunConfig:
    """A model whose cache, weights and passes are all a good part of the whole."""
    config = RunConfig(recipe="small", model=small.config(), data=DataConfig())
    decoder, vision = config.model.decoder, config.model.vision
    decoder.layers, decoder.width, decoder.mlp_width, decoder.vocabulary = 4, 128, 512, 2048
    vision.width, vision.mlp_width, vision.image_size = 48, 192, 96
    return config


def most_allocated(work) -> int:
    """The most bytes alive at any time during `work`, more than before it."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    return most_alive(profiler)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_concurrent=4, max_length=256),
        Limits(max_length=512, max_concurrent=16, kept_prompts=0, max_prefill=256),
    ],
)
def test_a_server_takes_what_the_budget_says(limits: Limits):
    """Passes full of pictures, long texts in parts, many at a time, sampled with all that selection can need."""
    config = run()
    planner = ServingPlanner(config, Device("cpu", 1e9), max_prefill=limits.max_prefill)
    predicted = planner.budget(limits)
    decoding = Decoding(max_tokens=40, temperature=1.0, top_p=0.9, alternatives=3)
    requests, kept = [], []
    for number in range(limits.max_concurrent):
        one = doc(*(("image",) * 20 if number % 4 else (80,)), 3, seed=number)
        one.images = [small.image(100 * number + at, 96) for at in range(len(one.images))]
        requests.append(EngineRequest(prompt(one), decoding, number))

    def serve() -> None:
        with torch.device("cpu"):
            model = MLLM(config.model)
        model.initialise(0)
        engine = ServingEngine(model.eval(), limits.sizes)
        kept.append(engine)
        for request in requests:
            engine.submit(request)
        while engine.busy:
            engine.step()

    taken = most_allocated(serve)
    device = sum(predicted.memory.values()) - sum(predicted.host.values())
    assert 0.75 * device < taken < 1.05 * device, predicted.memory


def test_selecting_tokens_takes_what_the_budget_counts():
    rows, vocabulary = 8, 4096
    logits_BV = torch.randn(rows, vocabulary)
    decodings = [Decoding(temperature=1.0, top_p=0.9, top_k=50, alternatives=20)] * rows
    generators = [torch.Generator().manual_seed(row) for row in range(rows)]
    taken = most_allocated(lambda: sample_tokens(logits_BV, decodings, generators=generators, image_token=3))
    assert 0.8 * SAMPLING < taken / logits_BV.numel() <= SAMPLING


def test_as_many_requests_as_fit():
    planner = ServingPlanner(run(), Device("h100", 50e6))
    limits = Limits(max_length=512)
    most = planner.most(limits)
    rows = most.limits.max_concurrent
    assert most.fits
    assert rows > 8
    assert not planner.budget(Limits(max_length=512, max_concurrent=rows + 1)).fits
    assert planner.most(Limits(max_length=1024)).limits.max_concurrent < rows
    assert not ServingPlanner(run(), Device("h100", 1e5)).most(limits).fits


def test_a_gpu_holds_weights_and_cache_in_bf16_and_no_features():
    on_gpu, on_cpu = (ServingPlanner(run(), device_of(name)).budget(Limits()) for name in ("h100", "cpu"))
    assert 2 * on_gpu.memory["weights"] == on_cpu.memory["weights"]
    assert on_cpu.memory["features of pictures"] == 1 << 30
    assert "features of pictures" not in on_gpu.memory
    assert on_gpu.host == on_cpu.host


def invoke(*words: str) -> tuple[int, str, str]:
    answer = CliRunner().invoke(app, ["budget", *words])
    return answer.exit_code, answer.output, str(answer.exception)


def test_the_command_says_how_many_requests_fit(tmp_path: Path):
    path = tmp_path / "sizes.json"
    code, output, _ = invoke("tiny_sft", "--serve", "--gpu", "l40s", "--memory", "1GB", "--json", str(path))
    assert code == 0
    saved = json.loads(path.read_text())
    assert f"--max-concurrent {saved['max_concurrent']} " in output
    assert saved["fits"]
    assert saved["bytes"] <= 1e9
    code, _, error = invoke("tiny_sft", "--serve", "--memory", "1GB", "--max-concurrent", "5000")
    assert code != 0
    assert re.search(r"--max-concurrent 5000 .* needs .* GB of 1.00 GB; --max-concurrent \d+ fits", error)
    for words, why in (
        (("tiny", "--gpu", "h1000"), "did you mean 'h100'"),
        (("tiny", "--memory", "much"), "a size is written as"),
        (("vit_l_14_224",), "writes no text"),
        (("mm1_30b", "--gpu", "l40s"), "GB of them weights"),
    ):
        code, _, error = invoke(*words, "--serve")
        assert code != 0
        assert why in error


@pytest.mark.parametrize("words", [block[1] for block in BLOCK.finditer(PAGE.read_text())])
def test_the_page_shows_what_the_command_says(words: str):
    shown = next(block[2] for block in BLOCK.finditer(PAGE.read_text()) if block[1] == words)
    answer = CliRunner().invoke(app, shlex.split(words))
    assert answer.exit_code == 0, answer.output
    assert answer.output == shown
