"""A small chat checkpoint: weights written by transformers, a tokenizer trained on the spot."""

import json

import tokenizers
import torch
import transformers
from toy_tokenizers import byte_level, write_tokenizer

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}<turn>{{ message.role }}
{{ message.content }}<eos>
{% endfor %}{% if add_generation_prompt %}<turn>assistant
{% endif %}"""


def write_checkpoint(folder, *, generation_config=None, chat_template=CHAT_TEMPLATE, **changes):
    """Write a whole checkpoint folder; `generation_config` replaces transformers' file."""
    tokenizer = tokenizers.Tokenizer.from_str(byte_level())
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), **special, **{**SIZES, **changes}
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    # The logit of <eos> is then 0, never the largest: greedy answers end where a test says.
    model.lm_head.weight.data[1] = 0.0
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation_config or {}))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return write_tokenizer(folder, byte_level())
