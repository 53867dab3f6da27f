"""The paper's final models: MM1-3B, 7B, 30B, and the sparse 3B and 7B (MM1, section 4).

The data is not public. Each recipe expects in the current folder: the stores `captions.lance`, `interleaved.lance` and
`text.lance`, a `tokenizer.json` of at most 32,768 entries with the special tokens of mm1, and the runs that encoder and
language model start from. All of these can be changed:
`data.sources.captions.store=...`, `data.tokenizer=...`, `start_from.vision=...`, or `start_from={}`.
"""

from mm1.config.model import ModelConfig
from mm1.config.run import DataConfig, OptimConfig, RunConfig, SourceConfig
from mm1.model import sizes

PUBLISHED = {"vit_h_14_378": "apple/DFN5B-CLIP-ViT-H-14-378"}
"""The published model that the run of this name, from which these recipes start, can be imported from."""


def mm1_3b(root: str = "runs") -> RunConfig:
    return _pretraining("mm1_3b", sizes.mm1_3b(), language=f"{root}/language_3b", root=root)


def mm1_7b(root: str = "runs") -> RunConfig:
    return _pretraining("mm1_7b", sizes.mm1_7b(), language=f"{root}/language_7b", root=root)


def mm1_30b(root: str = "runs") -> RunConfig:
    return _pretraining("mm1_30b", sizes.mm1_30b(), language=f"{root}/language_30b", root=root)


def mm1_3b_moe(root: str = "runs") -> RunConfig:
    """The paper doesn't say what a sparse model starts from; here it is the dense language model, upcycled."""
    return _pretraining("mm1_3b_moe", sizes.mm1_3b_moe(), language=f"{root}/language_3b", root=root)


def mm1_7b_moe(root: str = "runs") -> RunConfig:
    return _pretraining("mm1_7b_moe", sizes.mm1_7b_moe(), language=f"{root}/language_7b", root=root)


def _pretraining(name: str, model: ModelConfig, *, language: str, root: str) -> RunConfig:
    """Section 4: 45 % captions, 45 % interleaved, 10 % text; the same for all sizes, nothing frozen."""
    return RunConfig(
        recipe=name,
        model=model,
        data=DataConfig(
            sources={
                "captions": SourceConfig(store="captions.lance", share=9),
                "interleaved": SourceConfig(store="interleaved.lance", share=9),
                "text": SourceConfig(store="text.lance", share=2),
            },
            tokenizer="tokenizer.json",
            sequence_length=4096,
            max_images=16,
        ),
        start_from={"vision": f"{root}/vit_h_14_378", "decoder": language},
        # the law gives 5.9e-5, 4.0e-5 and 2.2e-5; the paper rounds to 6e-5, 4e-5 and 2e-5
        optim=OptimConfig(learning_rate="law", weight_decay=0.1, warmup_steps=2000, final_fraction=0.1, clip_norm=1.0),
        steps=200_000,
        batch_size=512,
        micro_batch_size=1,
        checkpoint_every=1000,
    )
