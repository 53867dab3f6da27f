"""The config of a run: change it by `a.b=c`, save it, load it, compare two.

Defaults are the simplest case. The paper's numbers are in `recipes/`, each with its source.
Counts are plural nouns; sizes are in the unit of their name.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from mm1.config.base import Config, ConfigError, flatten, missing, nearest
from mm1.config.model import ModelConfig
from mm1.config.renamed import VALUES, new_name
from mm1.disk import write_whole


class SourceConfig(Config):
    """One source of the mix: a store and its share of the sequences."""

    store: str  # a folder NAME.lance, an object-store URI, or sample:NAME for the shipped sample
    only: str = "*"  # documents whose own `source` matches this pattern; several sources may share a store
    share: int = Field(1, ge=0)  # sequences out of every sum(shares) of the run; 0: only a later stage has it


class Stage(Config):
    """Shares that hold from a step on, as MM1.5's 45:45:10 became 50:10:40; a source left out gives no sequences."""

    step: int = Field(ge=0)  # the stage's first step, counted from 0
    shares: dict[str, int]


class AugmentConfig(Config):
    """Random views of pictures in training (data/augment.py); text in pictures, left and right may not survive them."""

    min_area: float = Field(
        0.4, gt=0, le=1
    )  # the smallest crop, as a fraction of the picture; the largest is all of it
    flip: float = Field(0.5, ge=0, le=1)  # how often a picture is mirrored
    jitter: float = Field(0.0, ge=0, le=1)  # brightness, contrast, saturation: each times 1 - jitter to 1 + jitter


class DataConfig(Config):
    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    curriculum: list[Stage] = Field(default_factory=list)  # after the shares of `sources`, in order of steps
    unit: Literal["sequences", "tokens"] = "sequences"  # what shares count: sequences, or tokens that are trained
    validation: dict[str, str] = Field(default_factory=dict)  # name -> store
    tokenizer: str = "sample"  # a tokenizer.json, a folder with one, or `sample`
    sequence_length: int = Field(512, gt=1)  # T, in tokens
    max_images: int = Field(32, ge=0)  # tiles of a sequence
    augment: AugmentConfig | None = None  # null: pictures are shown as they are; validation shows them so always
    workers: int | None = Field(None, ge=0)  # processes that load data on a rank; 0: it does; null: from the cores

    @field_validator("unit", mode="before")
    @classmethod
    def _is_renamed(cls, value: Any) -> Any:
        if value in VALUES:
            raise ValueError(f"{value!r} is now called {VALUES[value]!r}")
        return value

    @model_validator(mode="after")
    def _has_valid_stages(self) -> "DataConfig":
        last = -1
        for stage in self.stages() if self.sources else []:
            shares = stage.shares
            if unknown := sorted(shares.keys() - self.sources.keys()):
                raise ValueError(
                    f"the stage of step {stage.step} names {unknown[0]!r}; {nearest(unknown[0], [*self.sources])}"
                )
            if min(shares.values(), default=0) < 0 or sum(shares.values()) < 1:
                raise ValueError(f"shares from step {stage.step} on must be 0 or more, one of them above 0: {shares}")
            if stage.step <= last:
                raise ValueError(f"data.curriculum must be in order of steps: {stage.step} comes after {last}")
            last = stage.step
        return self

    def stages(self) -> list[Stage]:
        """The shares of `sources` from step 0 on, then those of the curriculum."""
        start = Stage(step=0, shares={name: source.share for name, source in self.sources.items()})
        return [start, *self.curriculum]


class OptimConfig(Config):
    kind: Literal["adamw", "adafactor", "muon"] = "adamw"  # muon: for hidden matrices, adamw for the rest
    learning_rate: float | str = "law"  # law: the paper's, at the run's parameters; law:FILE: one of `mm1 law fit`
    lr_multipliers: dict[str, float] = Field(default_factory=dict)  # part or pattern of names -> factor
    weight_decay: float = 0.1  # multiplied by the learning rate at every step, as in torch
    betas: tuple[float, float] = (0.9, 0.95)  # of adamw
    epsilon: float = 1e-8  # of adamw
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"  # wsd: constant, then linear decay
    decay_fraction: float = Field(0.1, gt=0, le=1)  # the last part of the steps, in which wsd decays
    final_fraction: float = 0.1  # cosine and wsd end at this fraction of the peak
    clip_norm: float = 1.0

    @field_validator("learning_rate")
    @classmethod
    def _is_rate_or_law(cls, value: float | str) -> float | str:
        if isinstance(value, str) and value != "law" and not value.startswith("law:"):
            raise ValueError("expected a number, law (the paper's), or law:FILE (which `mm1 law fit` writes)")
        return value


class PixelsConfig(Config):
    """What `autoregressive_pixels` predicts pixels with, and in what order; the encoder is used without it."""

    head_width: int = Field(128, gt=0, multiple_of=4)
    head_layers: int = Field(4, ge=0)  # of its feed-forwards; 0: pixels are a linear function of features
    order: Literal["raster", "random"] = "raster"  # of the patches; random: one order for all, drawn by the seed


class ParallelConfig(Config):
    """How a run is spread over `dp_replicate x dp_shard x tp` ranks. No sequence and no loss depends on it."""

    dp_replicate: int = Field(1, ge=1)  # groups of ranks that each hold the whole model (HSDP)
    dp_shard: int | None = Field(None, ge=1)  # ranks that a weight is sharded over (FSDP2); null: all that are left
    tp: int = Field(1, ge=1)  # ranks that each matrix of the decoder's layers is split over; they share sequences
    ep: int = Field(1, ge=1)  # ranks that the experts are divided among; a divisor of `dp_shard`
    activation_checkpointing: Literal["none", "selective", "full"] = "none"  # recompute activations in the backward


class LoRAConfig(Config):
    """Adapters of the decoder's linear layers (train/adapters.py). All other weights stay, but for those of `full`."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)  # an adapter's product counts alpha / rank times
    targets: list[str] = Field(["decoder.blocks"])  # its linear layers: parts or patterns (*.attention.query)
    full: list[str] = Field(["connector"])  # trained in full: parts or patterns of parameters

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class CheckpointConfig(Config):
    """Where and how checkpoints are kept. No sequence and no loss depends on it."""

    keep: int = Field(2, ge=1)  # how many of the newest are kept
    milestone_every: int = Field(0, ge=0)  # checkpoints of multiples of so many steps are never removed; 0: none
    background: bool = True  # write while training goes on; false: training waits
    folder: str = ""  # for example s3://bucket/run; empty: `checkpoints` in the run's folder


class GuardConfig(Config):
    """When a run skips a step, rewinds, or stops (train/guard.py)."""

    skips: int = Field(3, ge=1)  # consecutive steps without a finite loss or gradient that stop the run
    spike: float | None = Field(None, gt=0)  # standard deviations above the usual loss; null: spikes are ignored
    spike_steps: int = Field(2, ge=1)  # consecutive losses that high that make a spike
    window: int = Field(128, ge=8)  # last losses, from which the usual one is estimated
    rewinds: int = Field(5, ge=1)  # rewinds before the run stops


class RunConfig(Config):
    """Everything that determines a run; saved as `config.json` in the run's folder."""

    recipe: str = ""
    objective: Literal["next_token", "contrastive", "contrastive_sigmoid", "autoregressive_pixels"] = "next_token"
    seed: int = Field(0, ge=0)
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    z_loss_weight: float = Field(0.0, ge=0)  # weight of the squared log-sum-exp of the logits, a mean over tokens
    # what a trained token counts by the n of its document: 1, 1 / n (all documents alike), 1 / sqrt(n)
    loss_weighting: Literal["token", "sample", "sqrt"] = "token"
    pixels: PixelsConfig | None = None  # of autoregressive_pixels, which needs it
    optim: OptimConfig = Field(default_factory=OptimConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    steps: int = Field(100, ge=1)
    batch_size: int = Field(8, ge=1)  # sequences of a step, over all ranks and micro-batches
    micro_batch_size: int = Field(8, ge=1)  # sequences of one forward pass
    start_from: dict[Literal["vision", "decoder", "model"], str] = Field(default_factory=dict)  # part -> run folder
    frozen: list[str] = Field(default_factory=list)  # parts (vision, decoder.blocks.0) or patterns (*.norm.*)
    lora: LoRAConfig | None = None  # null: weights are trained in full
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "always", "never"] = "auto"
    fp8: bool = False  # matrix products of the blocks in float8 (train/float8.py)
    checkpoint_every: int = Field(100, ge=1)  # steps
    checkpoints: CheckpointConfig = Field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    validate_every: int = Field(0, ge=0)  # steps; 0: only at the end
    validation_sequences: int = Field(16, ge=1)  # of each validation store
    health_every: int = Field(50, ge=0)  # steps; 0: never (train/health.py)
    tensorboard: bool = False
    wandb: str = ""  # a W&B project
    profile: tuple[int, int] | None = None  # first and last step, from 1, to write a trace of

    @model_validator(mode="after")
    def _agrees(self) -> "RunConfig":
        tokens, length = self.model.connector.tokens, self.data.sequence_length
        if self.data.max_images and tokens + 2 > length:
            raise ValueError(
                f"an image takes {tokens} positions and a document two more, but sequence_length is {length}; "
                "raise data.sequence_length, lower model.connector.tokens, or set data.max_images=0 where there are "
                "no images"
            )
        if self.batch_size % self.micro_batch_size:
            divisor = max(n for n in range(1, self.micro_batch_size + 1) if self.batch_size % n == 0)
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}; "
                f"try micro_batch_size={divisor}"
            )
        if self.data.augment is not None and self.model.tiling.kind != "none":
            raise ValueError(
                "data.augment shows a part of a picture as one tile; set data.augment=null, or model.tiling.kind=none"
            )
        if self.profile and not 1 <= self.profile[0] <= self.profile[1]:
            raise ValueError(f"profile is [first, last] step, counted from 1, but found {[*self.profile]}")
        return self


def override(run: RunConfig, assignments: list[str]) -> RunConfig:
    """`run` with each `a.b=c` applied, validated as a whole.

    A value that is JSON (`3`, `true`, `[1,2]`) is read as JSON, any other as text.

    Raises:
        ConfigError: an unknown field (the message has the most similar one) or a value of the wrong type.
    """
    data = run.model_dump(mode="json")
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r} is not an override; write FIELD=VALUE, for example steps=200")
        _assign(data, path, _value(text))
    return parse(data)


def parse(data: dict[str, Any]) -> RunConfig:
    """A run from its JSON form; one `ConfigError` tells all mistakes."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def save(run: RunConfig, path: Path) -> None:
    """Write the run to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, run.model_dump_json(indent=2) + "\n")


def load(path: Path) -> RunConfig:
    """The run recorded at `path` (a `config.json`); what it names with `./` is in the same folder."""
    try:
        data = json.loads(path.read_text())
        if "model_type" in data:
            raise ConfigError(
                f"{path.parent} holds a model of transformers, not a run; `mm1 import {path.parent} --to RUN` makes "
                f"it a run, and `mm1 eval hf:{path.parent}` scores it as it is"
            )
        return _resolved(parse(data), path.parent)
    except FileNotFoundError:
        if path.name != "config.json":
            raise ConfigError(missing(path, "file")) from None
        if path.parent.is_dir():
            raise ConfigError(f"no run at {path.parent}: it has no config.json") from None
        raise ConfigError(missing(path.parent, "run")) from None
    except NotADirectoryError:
        raise ConfigError(f"{path.parent} is a file; name the run's folder") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


def _resolved(run: RunConfig, folder: Path) -> RunConfig:
    """`run` with its tokenizer and starts of the form `./NAME` as paths to what is in `folder`."""

    def resolve(name: str) -> str:
        return str(folder / name) if name == "." or name.startswith("./") else name

    run.data.tokenizer = resolve(run.data.tokenizer)
    run.start_from = {part: resolve(start) for part, start in run.start_from.items()}
    return run


def differences(ours: RunConfig, theirs: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Every dotted field whose value differs, with both values; empty if the runs are equal."""
    left, right = flatten(ours.model_dump(mode="json")), flatten(theirs.model_dump(mode="json"))
    return {
        name: (left.get(name), right.get(name))
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    }


def _assign(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    group = data
    for name in parents:
        if group.get(name) is None:  # absent, or a group that is off
            group[name] = {}
        group = group[name]
        if not isinstance(group, dict):
            hint = nearest(path, _names(data))
            raise ConfigError(f"no field {path!r} in a run: {name!r} is a single value; {hint}")
    if isinstance(group.get(last), dict) and not isinstance(value, dict | None):
        if isinstance(value, str) and value.lstrip().startswith("{"):
            raise ConfigError(
                f'the value of {path} is no JSON: {value!r}; names are in double quotes, as in {{"a": 1}}'
            )
        inside = ", ".join(f"{path}.{name}" for name in group[last]) or f"{path}.NAME"
        raise ConfigError(f"{path!r} is a group of fields; set one of them: {inside}")
    group[last] = value


def _names(data: dict[str, Any]) -> list[str]:
    """The dotted names of all fields and groups."""
    leaves = list(flatten(data))
    groups = {name.rsplit(".", depth)[0] for name in leaves for depth in range(1, name.count(".") + 1)}
    return leaves + sorted(groups)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def explain(error: ValidationError) -> str:
    """All mistakes of a run in one line, each with its field."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "run"
        if problem["type"] == "extra_forbidden":
            new = new_name(where)
            hint = f"it is now {new!r}" if new else nearest(where, _names_beside(problem["loc"]))
            lines.append(f"no field {where!r} in a run; {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            of_group = problem["type"] == "value_error" and isinstance(problem["input"], dict)  # it names its fields
            value = "" if of_group else f" (found {problem['input']!r})"
            lines.append(f"{where}: {message}{value}" if where != "run" else message)
    return "; ".join(dict.fromkeys(lines))


def _names_beside(path: tuple[int | str, ...]) -> list[str]:
    """The dotted names that could have been meant by `path`. A default run has no source and no stage."""
    groups: dict[str, type[Config]] = {"sources": SourceConfig, "curriculum": Stage}
    inside = groups.get(str(path[1])) if len(path) == 4 else None
    if inside is None or path[0] != "data":
        whole = RunConfig(data=DataConfig(augment=AugmentConfig()), pixels=PixelsConfig(), lora=LoRAConfig())
        return _names(whole.model_dump(mode="json"))
    return [".".join(map(str, (*path[:3], name))) for name in inside.model_fields]
