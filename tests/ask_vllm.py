"""Asks vLLM what an export says, in an environment that has vLLM but not mm1; `tests/with_vllm.py` calls it.

`python ask_vllm.py EXPORT QUESTIONS ANSWERS ...`, as many threes as there are models. QUESTIONS is a JSON of prompts
(token ids with one image token for each picture, pictures in base64), ANSWERS what vLLM makes of each: the ids of the
prompt, and those that it writes. A model that it can't load has none, and its error is printed.
"""

import base64
import io
import json
import os
import sys
import traceback
from pathlib import Path

from PIL import Image


def main(export: str, file: Path, answers: Path) -> None:
    """Write to `answers` what vLLM writes greedily, in fp32 and without a graph."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # new processes would import vLLM for each model
    from vllm import LLM, SamplingParams

    questions = json.loads(file.read_text())
    pictures = max(len(prompt["pictures"]) for prompt in questions["prompts"])
    limits = {"limit_mm_per_prompt": {"image": pictures}} if pictures else {}
    model = LLM(
        export,
        trust_remote_code=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=questions["max_positions"],
        max_num_seqs=16,
        **limits,
    )
    how = SamplingParams(
        temperature=0,
        max_tokens=questions["max_tokens"],
        stop_token_ids=questions["ends"],
        ignore_eos=not questions["ends"],
        logit_bias=dict.fromkeys(questions.get("suppressed", []), -100.0),
    )
    prompts = []
    for prompt in questions["prompts"]:
        one = {"prompt_token_ids": prompt["tokens"]}
        if prompt["pictures"]:
            one["multi_modal_data"] = {
                "image": [Image.open(io.BytesIO(base64.b64decode(data))) for data in prompt["pictures"]]
            }
        prompts.append(one)
    written = model.generate(prompts, how, use_tqdm=False)
    said = [{"prompt": list(one.prompt_token_ids), "tokens": list(one.outputs[0].token_ids)} for one in written]
    answers.write_text(json.dumps({"answers": said, "model": model.llm_engine.model_config.architecture}))


def forget() -> None:
    """Free what vLLM keeps of a model in this process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


if __name__ == "__main__":
    for first in range(1, len(sys.argv), 3):
        try:
            main(sys.argv[first], Path(sys.argv[first + 1]), Path(sys.argv[first + 2]))
        except Exception:
            traceback.print_exc()
        forget()
