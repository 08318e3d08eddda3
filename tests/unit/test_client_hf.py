"""`memos_client.hf`: answers behind a stored cache are a full prefill's; nothing stored is touched, nothing wrong is used."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import lm  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache  # noqa: E402

from memos_client.hf import Past, load_past  # noqa: E402
from memos_drivers import tensors  # noqa: E402
from memos_drivers.lm.fingerprint import adapters, fingerprint, rope_digest  # noqa: E402
from memos_drivers.lm.past import segment_of  # noqa: E402
from memos_drivers.lm.tokens import TokenLayout  # noqa: E402
from memos_syscalls import messages as m  # noqa: E402
from memos_syscalls.errors import MemInvalid, MemModel, MemStale  # noqa: E402

tiny = lm.tiny
TEXTS = ["Anna keeps bees on the roof.", "Boris plays chess on Thursdays.\n\n", "The kettle is blue, the bicycle is green."]
QUESTION = "What does Boris play?"
KV = "kv-cube"


class Shelf:
    """A kernel of one KV cube and its sources, over a payload in sealed memory."""

    def __init__(self, model: Any, tokenizer: Any, *, system: str | None = None, stored: str = "float32") -> None:
        layout = TokenLayout(tokenizer)
        self.texts = {f"text-{n}": text for n, text in enumerate(TEXTS)}
        prefix = layout.prefix(system)
        ids = [number for text in TEXTS for number in layout.memory(text)]
        cache = DynamicCache()
        with torch.no_grad():
            model(torch.tensor([[*prefix, *ids]]), past_key_values=cache)
        segment = segment_of(cache, len(prefix), len(prefix) + len(ids))
        config = model.config
        self.descriptor = {
            "format": "memos.kv/1", "model": fingerprint(model, tokenizer), "adapters": list(adapters(model)),
            "dtype": str(model.dtype).removeprefix("torch."), "stored": stored, "layers": config.num_hidden_layers,
            "kv_heads": config.num_key_value_heads, "head_dim": config.head_dim, "rope": rope_digest(model),
            "start": len(prefix), "tokens": len(ids),
        }  # fmt: skip
        self.tensors: dict[str, Any] = {}
        scales: dict[str, Any] = {}
        for number, pair in enumerate(zip(segment.keys, segment.values, strict=True)):
            for side, tensor in zip("kv", pair, strict=True):
                one = tensor[0]
                if stored == "int8":
                    scales[f"{side}.{number}.scale"] = scale = one.abs().amax(-1, keepdim=True) / 127
                    one = (one / scale).round().to(torch.int8)
                self.tensors[f"{side}.{number}"] = one.to(getattr(torch, stored))
        self.tensors |= {"prefix_ids": torch.tensor(prefix), "token_ids": torch.tensor(ids), **scales}
        self.recipe: dict[str, Any] = {"method": "prefill", "leaves": len(TEXTS), "system": system}
        parents = [{"cube_id": cube, "version": 1, "role": "content"} for cube in self.texts]
        self.parents = [
            *parents,
            {"cube_id": "composition", "version": 1, "role": "content"},
            {"cube_id": "neighbour", "version": 4, "role": "context"},
        ]
        self.stale, self.form = False, "activation"
        self.maps: list[int] = []
        self.fds: list[int] = []

    def data(self) -> bytes:
        names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8", torch.int64: "I64"}
        listed = [(name, names[one.dtype], tuple(one.shape)) for name, one in self.tensors.items()]
        head, _layout = tensors.plan(listed, {"memos": json.dumps(self.descriptor)})
        return head + b"".join(one.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for one in self.tensors.values())

    def seal(self, data: bytes) -> int:
        fd = os.memfd_create("kv", os.MFD_ALLOW_SEALING)
        os.write(fd, data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.fds.append(fd)
        return fd

    def mem_stat(self, cube_id: str, *, version: int | None = None) -> m.MemStatReply:
        header = {
            "cube_id": cube_id, "version": version or 3, "form": self.form, "namespace": "a", "state": "generated",
            "owner": "u", "created_at": 1, "updated_at": 1, "offset": 1, "actor": "u", "bytes": 1, "recipe": self.recipe,
            "parents": self.parents, "stale": self.stale,
        }  # fmt: skip
        return m.MemStatReply.model_validate({"header": header})

    def mem_read(self, cube_id: str, *, version: int | None = None) -> m.MemReadReply:
        assert version == 1, "sources are read at the version that the cache was made of"
        told = {"version": 1, "form": "plaintext", "state": "generated", "offset": 1, "content": self.texts[cube_id]}
        return m.MemReadReply.model_validate({"cube_id": cube_id, **told})

    def mem_map(self, cube_id: str, *, version: int | None = None) -> m.MemMapReply:
        if not self.fds:
            self.seal(self.data())
        fd = os.dup(self.fds[0])
        self.maps.append(fd)
        told = {"version": version or 3, "form": "activation", "offset": 1, "bytes": os.fstat(fd).st_size, "fd": fd}
        return m.MemMapReply.model_validate({"cube_id": cube_id, "tier": "host", **told})


@pytest.fixture
def pair(tiny: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def shelf(pair: Any) -> Iterator[Shelf]:
    made = Shelf(*pair)
    data = made.data()
    yield made
    for fd in made.fds[:1]:
        assert os.pread(fd, os.fstat(fd).st_size, 0) == data or made.data() != data, "what is stored was written to"
    for fd in made.maps:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    for fd in made.fds:
        os.close(fd)


def loaded(shelf: Shelf, pair: Any, **options: Any) -> Past:
    return load_past(shelf, KV, model=pair[0], tokenizer=pair[1], **options)


def without_cache(past: Past, suffix: Any = QUESTION) -> dict[str, Any]:
    return {key: value for key, value in past.inputs(suffix).items() if key != "past_key_values"}


def test_logits_equal_those_of_a_full_forward(shelf: Shelf, pair: Any) -> None:
    model, tokenizer = pair
    past = loaded(shelf, pair)
    layout = TokenLayout(tokenizer)
    question = [{"role": "user", "content": QUESTION}]
    wanted = layout.prefix() + [n for text in TEXTS for n in layout.memory(text)] + layout.rest(question)
    assert past.inputs(QUESTION)["input_ids"].tolist() == [wanted] == past.inputs(question)["input_ids"].tolist()
    assert past.token_ids == wanted[: len(past.token_ids)]
    with torch.no_grad():
        full = model(**without_cache(past)).logits[:, len(past.token_ids) :]
        behind = model(**past.forward_inputs(QUESTION)).logits
    assert (full - behind).abs().max() < 1e-4


WAYS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    {"do_sample": True, "temperature": 0.7},
    {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way))
def test_generate_goes_on_as_after_a_full_prefill_each_time(shelf: Shelf, pair: Any, way: dict[str, Any]) -> None:
    model, _tokenizer = pair
    past = loaded(shelf, pair)
    seen: list[int] = []

    def count(_module: Any, inputs: Any) -> None:
        seen.append(int(inputs[0].shape[1]))

    def go(inputs: dict[str, Any]) -> list[list[int]]:
        torch.manual_seed(3)
        seen.clear()
        made: Any = model.generate(**inputs, **way, max_new_tokens=20, eos_token_id=None, pad_token_id=2)
        found: list[list[int]] = made.tolist()
        return found

    hook = model.get_input_embeddings().register_forward_pre_hook(count)
    plain = go(without_cache(past))
    assert seen[0] >= len(past.inputs(QUESTION)["input_ids"][0])
    for _ in range(2):
        assert go(past.inputs(QUESTION)) == plain
        assert max(seen) < len(past.token_ids), "only what the cache lacks is computed"
    hook.remove()


def test_assisted_decoding_which_ignores_filled_caches_is_refused(shelf: Shelf, pair: Any) -> None:
    with pytest.raises(MemInvalid, match="assisted decoding"):
        pair[0].generate(**loaded(shelf, pair).inputs(QUESTION), prompt_lookup_num_tokens=3, max_new_tokens=4)


def test_a_conversation_goes_on_and_another_system_message_is_refused(pair: Any) -> None:
    model, _tokenizer = pair
    shelf = Shelf(*pair, system="Be kind.")
    past = loaded(shelf, pair)
    talk = [
        {"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Chess."}, {"role": "user", "content": "When?"},
    ]  # fmt: skip
    told = past.forward_inputs([{"role": "system", "content": "Be kind."}, *talk])
    assert told["input_ids"].tolist() == past.forward_inputs(talk)["input_ids"].tolist()
    with torch.no_grad():
        full = model(**without_cache(past, talk)).logits[:, -1]
        assert (model(**told).logits[:, -1] - full).abs().max() < 1e-4
    with pytest.raises(MemModel, match="another system message"):
        past.inputs([{"role": "system", "content": "Be rude."}, *talk])


def test_a_write_into_a_layer_stays_in_that_cache(shelf: Shelf, pair: Any) -> None:
    model, _tokenizer = pair
    past = loaded(shelf, pair)
    with torch.no_grad():
        before = model(**past.forward_inputs(QUESTION)).logits
        spoilt = past.forward_inputs(QUESTION)
        for layer in spoilt["past_key_values"].layers:
            layer.keys.fill_(7)
            layer.values[..., 0] += 1
        assert (model(**spoilt).logits - before).abs().max() > 1e-2
        assert torch.equal(model(**past.forward_inputs(QUESTION)).logits, before)


def test_nothing_is_copied_before_the_first_forward(shelf: Shelf, pair: Any) -> None:
    past = loaded(shelf, pair)
    first, second = (vars(past.cache().layers[0])["_keys"].parts[1].data_ptr() for _ in range(2))
    assert first == second


def test_the_prefix_is_computed_once(shelf: Shelf, pair: Any) -> None:
    model, _tokenizer = pair
    loaded(shelf, pair)
    ran: list[int] = []

    def note(_module: Any, _inputs: Any) -> None:
        ran.append(1)

    hook = model.register_forward_pre_hook(note)
    loaded(shelf, pair)
    assert not ran
    hook.remove()


@pytest.mark.parametrize(("stored", "near"), [("float16", 0.02), ("bfloat16", 0.1), ("int8", 0.2)])
def test_caches_that_are_stored_smaller_are_nearly_as_right(pair: Any, stored: str, near: float) -> None:
    model, _tokenizer = pair
    past = loaded(Shelf(*pair, stored=stored), pair)
    with torch.no_grad():
        full = model(**without_cache(past)).logits[:, len(past.token_ids) :].log_softmax(-1)
        behind = model(**past.forward_inputs(QUESTION)).logits.log_softmax(-1)
    assert (full - behind).abs().max() < near


@pytest.mark.parametrize("field", ["model", "dtype", "adapters", "rope", "layers", "kv_heads", "head_dim", "format", "start"])
def test_everything_that_a_cache_depends_on_is_compared(shelf: Shelf, pair: Any, field: str) -> None:
    other: dict[str, Any] = {
        "model": "sha256:0", "dtype": "bfloat16", "adapters": ["sha256:1"], "rope": "sha256:2", "layers": 1, "kv_heads": 4,
        "head_dim": 8, "format": "memos.kv/2", "start": 3,
    }  # fmt: skip
    shelf.descriptor[field] = other[field]
    with pytest.raises(MemModel) as refused:
        loaded(shelf, pair)
    assert KV in refused.value.detail and "mem_migrate" in refused.value.advice


def test_changed_weights_tokens_and_prefixes_are_refused(shelf: Shelf, pair: Any, tmp_path: Path) -> None:
    model, tokenizer = pair
    other = AutoModelForCausalLM.from_pretrained(lm.tiny_model(tmp_path / "other", seed=1))
    with pytest.raises(MemModel, match="another model"):
        load_past(shelf, KV, model=other, tokenizer=tokenizer)
    shelf.texts["text-1"] = "Boris plays chess on Fridays."
    with pytest.raises(MemModel, match="other token ids"):
        loaded(shelf, pair)
    shelf.texts["text-1"] = TEXTS[1]
    shelf.recipe["system"] = "Be kind."
    with pytest.raises(MemModel, match="another prefix"):
        loaded(shelf, pair)
    shelf.recipe["system"] = None
    assert loaded(shelf, pair)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    with pytest.raises(MemModel, match="another model"):
        loaded(shelf, pair)


def test_what_is_stale_or_no_cache_is_refused(shelf: Shelf, pair: Any) -> None:
    shelf.stale = True
    with pytest.raises(MemStale):
        loaded(shelf, pair)
    assert loaded(shelf, pair, version=2).version == 2, "a version that was asked for is read as it was"
    shelf.stale, shelf.form = False, "plaintext"
    with pytest.raises(MemInvalid, match="not a KV cache"):
        loaded(shelf, pair)
    shelf.form, shelf.recipe = "activation", {"method": "compose"}
    with pytest.raises(MemInvalid, match="holds none"):
        loaded(shelf, pair)


@pytest.mark.parametrize("cut", [0, 4, 200, 3000, -1])
def test_a_payload_that_is_cut_is_refused(shelf: Shelf, pair: Any, cut: int) -> None:
    shelf.seal(shelf.data()[:cut])
    with pytest.raises(MemModel, match=KV):
        loaded(shelf, pair)
    shelf.descriptor["changed"] = True


@pytest.mark.parametrize("name", ["k.1", "prefix_ids", "token_ids"])
def test_a_payload_that_lacks_a_tensor_is_refused(shelf: Shelf, pair: Any, name: str) -> None:
    kept = shelf.tensors.pop(name)
    with pytest.raises(MemModel, match="no KV cache"):
        loaded(shelf, pair)
    shelf.tensors[name] = kept[..., :1]


def test_a_suffix_without_tokens_is_refused(pair: Any) -> None:
    model, tokenizer = pair
    tokenizer.chat_template = None
    past = loaded(Shelf(model, tokenizer), pair)
    with pytest.raises(MemInvalid, match="nothing to go on with"):
        past.inputs("")
    with torch.no_grad():
        full = model(**without_cache(past)).logits[:, -1]
        assert (model(**past.forward_inputs(QUESTION)).logits[:, -1] - full).abs().max() < 1e-4
