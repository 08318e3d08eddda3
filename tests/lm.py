"""A tiny language model for tests: random weights, a real tokenizer, a real chat template. Made in memory, in a second.

`tiny_model(directory)` writes a Llama with grouped KV heads (4 query heads, 2 KV heads of 16, 2 layers, hidden size 64) and a
byte-level BPE tokenizer with ChatML control tokens into `directory`, and returns it. The same seed and changes give the
same bytes. `config_changes` are fields of `LlamaConfig`: `tiny_model(path, num_hidden_layers=3, rope_theta=500.0)`.

The template puts a default system message of its own first, and a BOS token before everything.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

VOCABULARY = 512
CONTEXT = 4096
BOS, EOS, START, END = "<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"
DEFAULT_SYSTEM = "You are a tiny model."
TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "Anna moved to Lisbon in the spring and keeps bees on the roof. Boris plays chess on Thursdays with his sister. "
    "The kettle is blue, the bicycle is green, and the car was sold last year. Who lives where, and what do they like? "
    "A memory is a text that an agent keeps. The user said that the meeting is at nine. You are a tiny model.\n"
)


def tiny_model(directory: Path, *, seed: int = 0, template: str | None = TEMPLATE, **config_changes: Any) -> Path:
    """Writes the model and its tokenizer into `directory`, unless they are there."""
    if (directory / "model.safetensors").exists():
        return directory
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words: Any = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS, START, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    words.train_from_iterator([WORDS] * 4, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, bos_token=BOS, eos_token=EOS, pad_token=EOS, additional_special_tokens=[START]
    )
    tokenizer.chat_template = template
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True,
        "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 2, **config_changes,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(LlamaConfig(**fields))
    model.eval()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)
    # The weights last: their file says that the directory is whole.
    model.save_pretrained(directory)
    return directory


def loaded(directory: Path, **options: Any) -> Any:
    """The model of a directory, as transformers loads it."""
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM.from_pretrained(directory, **options)
    return made.eval()


def tiny_gguf(file: Path, *, seed: int = 0) -> Path:
    """A GGUF file of the same shape, with weights and a tokenizer of its own."""
    import gguf
    import numpy as np

    words = json.loads((tiny_model(file.parent / "words") / "tokenizer.json").read_text("utf-8"))["model"]
    writer: Any = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("tiny")
    for add, value in (
        (writer.add_context_length, CONTEXT), (writer.add_embedding_length, 64), (writer.add_block_count, 2),
        (writer.add_feed_forward_length, 128), (writer.add_head_count, 4), (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-6), (writer.add_rope_freq_base, 10000.0),
        (writer.add_vocab_size, len(words["vocab"])), (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, list(words["vocab"])),
        (writer.add_token_types, [3 if token in (BOS, START, END) else 1 for token in words["vocab"]]),
        (writer.add_token_merges, [" ".join(pair) for pair in words["merges"]]),
        (writer.add_bos_token_id, 0), (writer.add_eos_token_id, 2), (writer.add_chat_template, TEMPLATE),
    ):  # fmt: skip
        add(value)
    made = np.random.default_rng(seed)
    shapes = {"token_embd": (len(words["vocab"]), 64), "output_norm": (64,)}
    for block in ("blk.0.", "blk.1."):
        shapes |= {f"{block}{name}": (64,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{block}{name}": (64, 64) for name in ("attn_q", "attn_output")}
        shapes |= {f"{block}{name}": (32, 64) for name in ("attn_k", "attn_v")}
        shapes |= {f"{block}{name}": (128, 64) for name in ("ffn_gate", "ffn_up")} | {f"{block}ffn_down": (64, 128)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", made.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def smollm2_cache() -> Path:
    """Where the bundled model is converted for tests: once on a machine, not once in a session."""
    return Path(tempfile.gettempdir()) / f"memos-models-{os.getuid()}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of seed 0; a test module takes it with `tiny = lm.tiny`. Read it only."""
    return tiny_model(tmp_path_factory.mktemp("lm") / "tiny")
