"""Fine-tuning of the paper's models on chats: MM1 (section 5) and MM1.5 (arXiv 2409.20566).

Each recipe expects in the current folder the stores of its sets, under `sft/` or `sft_1_5/`, and the run that it starts
from. A start lists what is missing, with its command. docs/finetune.md says where the sets are published.
"""

from dataclasses import dataclass
from pathlib import Path

from mm1.config.model import ModelConfig, TilingConfig
from mm1.config.run import DataConfig, OptimConfig, RunConfig, SourceConfig
from mm1.model import sizes


@dataclass(frozen=True, slots=True)
class ChatSet:
    """A set of the mixture: its size, where it is published, and what `mm1 prepare` reads for it."""

    thousands: int  # of samples; not certain one by one, but their sum is the paper's 1.45 M
    published: str
    prepared: str
    pictures: bool = True


_INSTRUCT = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"

SETS = {
    "text_only": ChatSet(13, "internal, like ShareGPT's", prepared="CHATS.json", pictures=False),
    "llava_conv": ChatSet(57, _INSTRUCT, prepared="conversation_58k.json pictures=coco/train2017"),
    "llava_complex": ChatSet(77, _INSTRUCT, prepared="complex_reasoning_77k.json pictures=coco/train2017"),
    "sharegpt4v": ChatSet(
        102,
        "https://huggingface.co/datasets/Lin-Chen/ShareGPT4V",
        prepared="sharegpt4v_instruct_gpt4-vision_cap100k.json pictures=PICTURES",
    ),
    "vqav2": ChatSet(83, "https://visualqa.org", prepared="task:vqav2 data=VQAv2"),
    "gqa": ChatSet(72, "https://cs.stanford.edu/people/dorarad/gqa", prepared="task:gqa data=GQA"),
    "okvqa": ChatSet(9, "https://okvqa.allenai.org", prepared="task:okvqa data=OK-VQA"),
    "aokvqa": ChatSet(66, "https://github.com/allenai/aokvqa", prepared="task:aokvqa data=A-OKVQA"),
    "coco": ChatSet(83, "https://cocodataset.org", prepared="task:coco data=COCO"),
    "textcaps": ChatSet(22, "https://textvqa.org/textcaps", prepared="task:textcaps data=TextCaps"),
    "ocrvqa": ChatSet(80, "https://ocr-vqa.github.io", prepared="task:ocrvqa data=OCR-VQA"),
    "dvqa": ChatSet(200, "https://github.com/kushalkafle/DVQA_dataset", prepared="task:dvqa data=DVQA"),
    "chartqa": ChatSet(18, "https://github.com/vis-nlp/ChartQA", prepared="task:chartqa data=ChartQA"),
    "ai2d": ChatSet(3, "https://prior.allenai.org/projects/diagram-understanding", prepared="task:ai2d data=AI2D"),
    "docvqa": ChatSet(39, "https://www.docvqa.org", prepared="task:docvqa data=DocVQA"),
    "infovqa": ChatSet(24, "https://www.docvqa.org", prepared="task:infovqa data=InfoVQA"),
    "synthdog_en": ChatSet(
        500,
        "https://huggingface.co/datasets/naver-clova-ix/synthdog-en",
        prepared="rendered_text text=text/text.lance count=500000",
    ),
}
"""MM1's mixture by the name of its folder."""

CATEGORIES = {
    "text_rich": 372,
    "refer_and_ground": 225,
    "general": 113,
    "math": 56,
    "code": 23,
    "science": 11,
    "multi_image": 100,
    "text_only": 100,
}
"""MM1.5's categories and their shares in thousandths, which follow from its ratios: to general, refer and ground 2,
math 0.5, code 0.2, science 0.1; single-image, multi-image and text 0.8, 0.1 and 0.1."""


def mm1_3b_sft(root: str = "runs") -> RunConfig:
    return _mm1("mm1_3b", sizes.mm1_3b(), root=root)


def mm1_7b_sft(root: str = "runs") -> RunConfig:
    return _mm1("mm1_7b", sizes.mm1_7b(), root=root)


def mm1_30b_sft(root: str = "runs") -> RunConfig:
    return _mm1("mm1_30b", sizes.mm1_30b(), root=root)


def mm1_3b_moe_sft(root: str = "runs") -> RunConfig:
    return _mm1("mm1_3b_moe", sizes.mm1_3b_moe(), root=root)


def mm1_7b_moe_sft(root: str = "runs") -> RunConfig:
    return _mm1("mm1_7b_moe", sizes.mm1_7b_moe(), root=root)


def mm1_5_sft(root: str = "runs") -> RunConfig:
    """MM1.5's last stage, on the 3B: the shares of its categories, 23k steps, and two to ten tiles of a picture.

    It comes after a continued pre-training on 45 M pages of text at the same resolution, for which there is no recipe:
    this one starts from the pre-training.
    """
    sources = {
        name: SourceConfig(store=_store("sft_1_5", name, pictures=name != "text_only"), share=share)
        for name, share in CATEGORIES.items()
    }
    run = _fine_tuning("mm1_5_sft", sizes.mm1_3b(), start=f"{root}/mm1_3b", sources=sources)
    run.model.tiling = TilingConfig(kind="mm1_5")
    # the length is not stated: that of its pre-training; two pictures of nine tiles and their overviews, and text
    run.data.sequence_length, run.data.max_images = 4096, 27
    run.optim.learning_rate, run.steps = 2e-5, 23_000
    return run


def remedy(store: str) -> str:
    """What makes a store that these recipes ask for; empty for any other store."""
    folder, name = Path(store).parent, Path(store).parent.name
    if folder.parent.name == "sft_1_5" and name in CATEGORIES:
        return f"mm1 prepare CHATS --to {folder}, from your chats of this category"
    if folder.parent.name != "sft" or name not in SETS:
        return ""
    published = SETS[name].published
    where = published if published.startswith("https://") else f"chats of your own: MM1's are {published}"
    return f"mm1 prepare {SETS[name].prepared} --to {folder}, from {where}"


def _mm1(base: str, model: ModelConfig, *, root: str) -> RunConfig:
    """Section 5: 10k steps of 256 x 2048, pictures of 1344 pixels as five tiles of 672, nothing frozen.

    All sets are mixed without tuned ratios, so each has the share of its samples. These are shares of sequences: almost
    every sample is one picture of 720 positions and a short chat. The paper doesn't say that it packs. Here two samples
    or more fill a sequence, so a run sees more than 2.56 M samples, which as many sequences hold without packing.
    """
    sources = {
        name: SourceConfig(store=_store("sft", name, pictures=chats.pictures), share=chats.thousands)
        for name, chats in SETS.items()
    }
    run = _fine_tuning(f"{base}_sft", model, start=f"{root}/{base}", sources=sources)
    run.model.tiling = TilingConfig(kind="mm1")
    return run


def _fine_tuning(name: str, model: ModelConfig, *, start: str, sources: dict[str, SourceConfig]) -> RunConfig:
    """What both papers say: AdaFactor, a cosine (to zero, which only MM1.5 says), batches of 256, 672 pixels a tile."""
    model.vision.image_size = 672
    return RunConfig(
        recipe=name,
        model=model,
        # ten tiles: two pictures of five; a third doesn't fit into 2048 positions
        data=DataConfig(sources=sources, tokenizer=start, sequence_length=2048, max_images=10),
        start_from={"model": start},
        # neither paper gives warm-up or weight decay
        optim=OptimConfig(kind="adafactor", learning_rate=1e-5, weight_decay=0.0, final_fraction=0.0),
        steps=10_000,
        batch_size=256,
        micro_batch_size=1,
        checkpoint_every=500,
    )


def _store(folder: str, name: str, *, pictures: bool) -> str:
    """Where a preparation of the set puts its chats."""
    return f"{folder}/{name}/{'images' if pictures else 'text'}.lance"
