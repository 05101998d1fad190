"""Which field of a config a wrong name means, and what fields are called elsewhere.

From the code of VSRN (2019), SCAN and VSE++, and from other trainers; docs/published.md compares the options of 2019.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

# Those spelt alike, such as num_epochs, are found without a table.
_NAMES = {
    "data.path": "data_path data_name data_dir dataset",
    "model.feature_dim": "img_dim image_dim feature_size feat_dim",
    "model.joint_dim": "embed_size embed_dim embedding_dim emb_size joint_size",
    "model.absolute": "use_abs",
    "model.similarity": "measure",
    "model.captioner.word_dim": "dim_word",
    "model.captioner.max_tokens": "max_len max_length",
    "model.captioner.cell": "rnn_type rnn_cell",
    "model.scan.direction": "cross_attn",
    "model.scan.first_norm": "raw_feature_norm",
    "model.scan.inverse_temperature": "lambda_softmax",
    "model.scan.aggregation": "agg_func",
    "model.scan.logsumexp_factor": "lambda_lse",
    "model.scan.bidirectional": "bi_gru",
    "model.network.name": "cnn_type backbone",
    "loss.negatives": "max_violation hard_negatives",
    "loss.warm_up_epochs": "warmup_epochs vse_mean_warmup_epochs",
    "loss.temperature": "tau temp",
    "train.init_from": "init init_weights pretrained checkpoint start_from from_pretrained finetune_from",
    "train.batch_size": "bs batch",
    "train.max_steps": "steps num_steps max_iter max_iters iterations",
    "train.accumulate": "grad_accum accumulate_grad_batches gradient_accumulation_steps accumulation_steps",
    "train.patience": "early_stopping early_stop early_stopping_patience",
    "train.optimizer": "optim opt optimiser",
    "train.weight_decay": "wd decay l2",
    "train.learning_rate": "lr",
    "train.learning_rate_drop": "lr_update lr_drop milestones lr_step",
    "train.gradient_clip": "grad_clip clip max_grad_norm clip_grad gradient_clip_val",
    "train.validate_every": "val_step eval_every eval_steps val_every val_check_interval",
    "train.precision": "fp16 bf16 amp mixed_precision",
    "train.device": "gpu cuda",
    "train.loggers": "logger wandb tensorboard report_to",
}
FIELD_CALLED = {name: field for field, names in _NAMES.items() for name in names.split()}


def nearest_field(name: str, prefix: str, fields: Collection[str]) -> str | None:
    """The field, such as "train.epochs", that a wrong name means, or None.

    name    without the section
    prefix  the section it was looked for in, such as "train.", or ""
    fields  every field and section by its dotted name (`config_fields`)

    The field of that very name elsewhere goes before what other code calls so, and that before names spelt alike.
    """
    name = name.replace("-", "_")
    if name not in [dotted.rpartition(".")[2] for dotted in fields] and name.lower() in FIELD_CALLED:
        return FIELD_CALLED[name.lower()]
    for some, cutoff in ((fields, 1.0), (siblings(prefix, fields), 0.6), (fields, 0.6)):
        known = {dotted.rpartition(".")[2]: dotted for dotted in some}
        for near in difflib.get_close_matches(name, known, n=1, cutoff=cutoff):
            return known[near]
    return None


def siblings(prefix: str, fields: Collection[str]) -> list[str]:
    """The fields of a section, such as "train.", by their dotted names."""
    return [dotted for dotted in fields if dotted.startswith(prefix) and "." not in dotted.removeprefix(prefix)]
