"""What operators see: metrics under vLLM's names, and an access log without anybody's content."""

import gc
import json
import logging
import time

import openai
import pytest
import requests
import serving
from prometheus_client.parser import text_string_to_metric_families
from serving import said, shown
from test_serve import chat_run  # noqa: F401  (a fixture)
from test_serve_load import until

from mm1.serve.limits import Limits

VLLM = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries"),
    *("prefix_cache_hits", "prompt_tokens", "generation_tokens", "request_success", "time_to_first_token_seconds"),
    *("inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"),
    *("request_prefill_time_seconds", "request_decode_time_seconds"),
}


def metrics(server: serving.Running) -> dict[str, float]:
    """Every sample by its name and its labels but the model's."""
    samples = {}
    for family in text_string_to_metric_families(requests.get(f"{server.base}/metrics", timeout=60).text):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "tiny"
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items() if key != "le")
            if not sample.name.endswith("_created"):
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


@pytest.fixture
def server(chat_run):  # noqa: F811
    with serving.running(chat_run, limits=Limits(max_concurrent=3, max_length=256, kept_prompts=1)) as one:
        yield one


def ask(server: serving.Running, *, shows: int = 1, **more):
    messages = [
        {
            "role": "user",
            "content": [shown(shows), said("What is it, and of which colour is the thing that this picture shows?")],
        }
    ]
    return server.client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=9, **more)


def test_metrics_have_the_names_of_vllm_and_count_what_was_done(server):
    text = requests.get(f"{server.base}/metrics", timeout=60).text
    families = {family.name.removeprefix("mm1:") for family in text_string_to_metric_families(text)}
    assert families >= VLLM
    first = ask(server)
    second = ask(server, n=2)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    now, prompt = metrics(server), first.usage.prompt_tokens
    assert now["mm1:prompt_tokens_total"] == now["mm1:prefix_cache_queries_total"] == 3 * prompt
    assert now["mm1:prefix_cache_hits_total"] == 2 * (prompt - 1)
    written = first.usage.completion_tokens + second.usage.completion_tokens
    assert now["mm1:generation_tokens_total"] == written
    assert sum(value for name, value in now.items() if name.startswith("mm1:request_success_total")) == 3
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert now[f"mm1:{name}_seconds_count"] == 3
    assert now["mm1:num_requests_running"] == now["mm1:num_requests_waiting"] == now["mm1:kv_cache_usage_perc"] == 0
    assert (now["mm1:image_cache_queries"], now["mm1:image_cache_hits"]) == (1, 0)
    config = server.server.loaded.model.config.decoder
    assert now["mm1:kv_cache_bytes"] == 4 * 256 * 2 * config.layers * config.kv_heads * config.head_width * 4


def test_features_of_pictures_are_kept_within_their_bytes(chat_run):  # noqa: F811
    width = chat_run.model.config.decoder.width
    one = chat_run.model.config.tile_features * width * 4
    limits = Limits(max_concurrent=1, max_length=256, kept_prompts=0, max_feature_bytes=3 * one)
    with serving.running(chat_run, limits=limits) as server:
        for number in range(9):
            content = [shown(number), said("?")]
            server.client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": content}], max_tokens=1
            )
        assert metrics(server)["mm1:image_cache_bytes"] == 3 * one


def access_lines(caplog, number: int) -> list[dict]:
    """The lines of the log once there are so many: each is written after its answer was sent."""
    lines: list[dict] = []

    def are_there() -> bool:
        lines[:] = [json.loads(record.message) for record in caplog.records if record.name == "mm1.access"]
        return len(lines) >= number

    until(are_there)
    return lines


def test_the_access_log_has_a_line_of_json_for_each_request_and_no_content(server, caplog):
    with caplog.at_level(logging.INFO, logger="mm1.access"):
        reply = ask(server)
        access_lines(caplog, 1)
        requests.post(f"{server.base}/v1/chat/completions", json={"messages": "secret"}, timeout=60)
        access_lines(caplog, 2)
        list(ask(server, stream=True))
        lines = access_lines(caplog, 3)
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/v1/chat/completions", status) for status in (200, 400, 200)
    ]
    assert lines[0]["prompt_tokens"] == reply.usage.prompt_tokens
    assert lines[0]["completion_tokens"] == lines[2]["completion_tokens"] == reply.usage.completion_tokens
    assert lines[2]["reasons"] == ["length"]
    for word in ("What is it", "secret", "base64", reply.choices[0].message.content[:12]):
        assert word not in caplog.text
    assert len({line["id"] for line in lines}) == 3


def test_an_answer_that_ends_at_once_has_a_first_token(server):
    end = server.server.loaded.tokenizer.end
    reply = ask(server, logit_bias={str(end): 100})
    assert (reply.choices[0].message.content, reply.usage.completion_tokens) == ("", 1)
    assert metrics(server)["mm1:time_to_first_token_seconds_count"] == 1


def test_pixels_of_prompts_are_freed_when_nobody_needs_them(server):
    gc.disable()
    try:
        ask(server, n=2)
        list(ask(server, stream=True))
        with pytest.raises(openai.BadRequestError):  # after its picture was decoded
            ask(server, shows=2, extra_body={"structured_outputs": {"regex": "("}})
        until(lambda: metrics(server)["mm1:decoded_picture_bytes"] == 0)
    finally:
        gc.enable()


def test_a_client_that_leaves_before_its_answer_is_logged_as_such(server, caplog):
    with caplog.at_level(logging.INFO, logger="mm1.access"):
        engine, step = server.server.scheduler.engine, server.server.scheduler.engine.step
        engine.step = lambda: time.sleep(0.4) or step()
        with pytest.raises(openai.APITimeoutError):
            ask(server, timeout=0.5, extra_body={"ignore_eos": True})
        (line,) = access_lines(caplog, 1)
    assert (line["status"], line["error"], line["reasons"]) == (499, "client_gone", ["aborted"])
