"""Names that have changed since version 0.1: a config or command with an old one gets an error with the new one."""

FIELDS = {
    "row_length": "sequence_length",
    "row_images": "max_images",
    "batch_rows": "batch_size",
    "micro_rows": "micro_batch_size",
    "validation_rows": "validation_sequences",
    "replicas": "dp_replicate",
    "shard": "dp_shard",
    "tensor": "tp",
    "expert": "ep",
    "recompute": "activation_checkpointing",
    "chosen": "top_k",
    "balance_weight": "load_balance_weight",
    "unrotated": "no_rope_layers",
    "tied": "tie_embeddings",
    "deviation": "std",
    "multipliers": "lr_multipliers",
}
"""Fields of a run whose last part has changed."""

WHOLE_NAMES = {
    "z_weight": "z_loss_weight",
    "model.decoder.sparse.z_weight": "model.decoder.sparse.router_z_weight",
    "data.image_tokens": "model.connector.tokens",
}
"""Fields of a run whose whole dotted name has changed."""

VALUES = {"rows": "sequences"}
"""Values of `data.unit`."""

PREPARE_FIELDS = {
    "smallest": "min_side",
    "aspect": "max_aspect",
    "a_page": "max_images",
    "side": "max_side",
    "repeats": "max_image_repeats",
    "against": "decontaminate",
}
"""Fields of `mm1 prepare`."""

OPTIONS = {
    "--by": "--scoring",
    "--full-shots": "--subimage-shots",
    "--text-shots": "--text-only-shots",
}
"""Options of the command line."""


def new_name(dotted: str) -> str | None:
    """The new name of the field of a run that 0.1 called `dotted`; None if it had no such field."""
    if dotted in WHOLE_NAMES:
        return WHOLE_NAMES[dotted]
    parents, _, last = dotted.rpartition(".")
    return ".".join(filter(None, (parents, FIELDS[last]))) if last in FIELDS else None
