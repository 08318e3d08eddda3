"""Composed caches against full prefill by Hugging Face's own forward, on tiny models with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, permutations
from typing import Any, Final, cast

import pytest

pytest.importorskip("torch", reason="needs the `torch` extra")
pytest.importorskip("transformers", reason="needs the `torch` extra")

import torch
from tests.steps import done
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from memos_drivers.activation.compose import Chunk, Composed, Text, capture, capture_prefix, compose, merge
from memos_drivers.activation.forward import blank, cut, logits_of, prefill, supported, taken_apart
from memos_drivers.activation.rotate import Rotary, moved, rotate
from memos_drivers.lm.past import Segment
from memos_syscalls.errors import MemInvalid, MemModel

WORDS: Final = 61
SIZES: Final[dict[str, Any]] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
}
LINEAR: Final = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN: Final = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3: Final = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: Final[dict[str, tuple[Any, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "llama, linear": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=LINEAR)),
    "llama 3": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "llama, yarn": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=YARN)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None)),
    "qwen 2": (Qwen2ForCausalLM, Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})),
    "qwen 3": (Qwen3ForCausalLM, Qwen3Config(**SIZES)),
}


def made(name: str) -> torch.nn.Module:
    """A model whose random weights are large enough that context matters."""
    torch.manual_seed(11)
    kind, config = MODELS[name]
    model = cast(torch.nn.Module, kind(config)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module", name="model")
def small_llama() -> torch.nn.Module:
    return made("llama")


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(0, WORDS, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


PREFIX: Final = ids(5, 1)
MEMORIES: Final = [ids(40, 2), ids(31, 3), ids(52, 4)]
NEIGHBOURS: Final = [ids(20, 5), ids(25, 6)]
QUESTION: Final = ids(9, 7)
TEXT: Final = ids(13, 8)


def full(model: torch.nn.Module, *parts: Sequence[int]) -> torch.Tensor:
    """Logits of Hugging Face's forward behind the last token."""
    with torch.no_grad():
        return cast(torch.Tensor, model(torch.tensor([list(chain(PREFIX, *parts, QUESTION))])).logits[0, -1])


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def prefix_of(model: torch.nn.Module) -> Segment:
    return done(capture_prefix(model, PREFIX))


def chunks_of(model: torch.nn.Module, neighbours: Sequence[Sequence[int]] = NEIGHBOURS) -> list[Chunk]:
    return [done(capture(model, PREFIX, memory, neighbours)) for memory in MEMORIES]


def composed(model: torch.nn.Module, parts: Sequence[Chunk | Text], share: float) -> Composed:
    return done(compose(model, prefix_of(model), parts, QUESTION, share))


@pytest.mark.parametrize("name", MODELS)
def test_our_forward_says_what_hugging_faces_says(name: str) -> None:
    model = made(name)
    stack, tokens = taken_apart(model), ids(300, 9)
    cache = blank(stack, len(tokens))
    with torch.no_grad():
        states = done(prefill(stack, tokens, cache, 0))
        theirs = model(torch.tensor([tokens]), use_cache=True)
        assert off(logits_of(stack, states)[0], theirs.logits[0, -states.shape[1] :]) < 1e-4
    for number, layer in enumerate(theirs.past_key_values.layers):
        assert off(cache.keys[number], layer.keys) < 1e-4
        assert off(cache.values[number], layer.values) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_a_composition_that_recomputes_everything_is_the_full_prefill(name: str) -> None:
    model = made(name)
    chunks = chunks_of(model)
    result = composed(model, [chunks[2], chunks[0], chunks[1]], 1)
    assert off(result.logits, full(model, MEMORIES[2], MEMORIES[0], MEMORIES[1])) < 1e-3
    assert (result.recomputed, result.depth) == (len(MEMORIES[0]) + len(MEMORIES[1]), 5)


@pytest.mark.parametrize("name", MODELS)
def test_keys_move_to_where_the_model_would_have_put_them(name: str) -> None:
    rotary = taken_apart(made(name)).rotary
    bare, old, new = torch.randn(1, 2, 30, 8), torch.arange(7, 37), torch.randperm(4000)[:30]

    def placed(positions: torch.Tensor) -> torch.Tensor:
        return rotate(bare, *rotary.table(positions, torch.float32))

    there = moved(placed(old), rotary.turn(old, new))
    assert off(there, placed(new)) < 1e-5
    assert off(moved(there, rotary.turn(new, old)), placed(old)) < 1e-5
    half = moved(placed(old).bfloat16(), rotary.turn(old, new))
    assert half.dtype == torch.bfloat16
    assert off(half.float(), placed(new)) < 0.05


def test_a_single_chunk_behind_the_prefix_is_exact_without_recomputing(model: torch.nn.Module) -> None:
    for memory, chunk in zip(MEMORIES, chunks_of(model), strict=True):
        result = composed(model, [chunk], 0.15)
        assert off(result.logits, full(model, memory)) < 1e-3
        assert result.recomputed == 0


def test_in_every_order_recomputing_brings_the_composition_nearer(model: torch.nn.Module) -> None:
    chunks = chunks_of(model)
    errors = dict.fromkeys((0, 0.4, 1), 0.0)
    for order in permutations(range(3)):
        wanted = full(model, *(MEMORIES[n] for n in order))
        for share in errors:
            error = off(composed(model, [chunks[n] for n in order], share).logits, wanted)
            assert error < (1e-3 if share == 1 else 20)
            errors[share] += error
    assert errors[0] > errors[0.4] > errors[1]


def test_a_share_bounds_the_token_layers_that_are_recomputed(model: torch.nn.Module) -> None:
    chunks, tokens = chunks_of(model), sum(map(len, MEMORIES))
    for share in (0.01, 0.05, 0.15, 0.3, 0.7):
        result = composed(model, chunks, share)
        assert result.recomputed * result.depth <= share * tokens * 5
    assert composed(model, chunks, 0.15).recomputed == int(0.15 * tokens * 5 / 4)


def test_texts_between_chunks_are_computed_in_full(model: torch.nn.Module) -> None:
    chunks, text = chunks_of(model), Text(tuple(TEXT))
    everything = composed(model, [chunks[0], text, chunks[1], text], 1)
    assert off(everything.logits, full(model, MEMORIES[0], TEXT, MEMORIES[1], TEXT)) < 1e-3
    behind = composed(model, [chunks[0], text], 0)
    assert off(behind.logits, full(model, MEMORIES[0], TEXT)) < 1e-3
    only = composed(model, [text], 0)
    assert off(only.logits, full(model, TEXT)) < 1e-3
    some = composed(model, [text, chunks[0], text, chunks[1]], 0.15)
    assert some.recomputed == int(0.15 * (len(MEMORIES[0]) + len(MEMORIES[1])) * 5 / 4)
    assert bool(some.logits.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_its_rounding(dtype: torch.dtype) -> None:
    exact, model = made("qwen 3"), made("qwen 3").to(dtype)
    chunks = chunks_of(model)
    assert {t.dtype for c in chunks if c.near for t in (*c.alone.keys, *c.near.keys, *c.near.values)} == {dtype}
    wanted = full(exact, *MEMORIES)
    theirs, ours = off(full(model, *MEMORIES), wanted), off(composed(model, chunks, 1).logits, wanted)
    assert ours < 2 * theirs + 0.1


def test_a_request_of_no_parts_and_a_long_question_is_the_full_prefill(model: torch.nn.Module) -> None:
    chunks, long = chunks_of(model), ids(700, 10)
    prefix = prefix_of(model)
    for parts, memories in (((), ()), (chunks[:2], MEMORIES[:2])):
        wanted = full(model, *memories, long)
        assert off(done(compose(model, prefix, parts, long + QUESTION, 1)).logits, wanted) < 1e-3
    assert bool(done(compose(model, prefix, chunks, long, 0.15)).logits.isfinite().all())


def test_decoding_goes_on_from_a_composed_cache(model: torch.nn.Module) -> None:
    result, more = composed(model, chunks_of(model), 1), ids(6, 12)
    stack = taken_apart(model)
    count = result.cache.tokens
    cache = blank(stack, count + len(more))
    for new, old in zip((*cache.keys, *cache.values), (*result.cache.keys, *result.cache.values), strict=True):
        new[:, :, :count] = old
    with torch.no_grad():
        states = done(prefill(stack, more, cache, count))
        wanted = model(torch.tensor([[*chain(PREFIX, *MEMORIES, QUESTION), *more]])).logits[0, -len(more) :]
        assert off(logits_of(stack, states)[0], wanted) < 1e-3
        assert off(logits_of(stack, result.states)[0, -1], result.logits) < 1e-5


def test_without_neighbours_chunks_are_composed_all_the_same(model: torch.nn.Module) -> None:
    chunks = chunks_of(model, ())
    assert all(chunk.near is None and chunk.score is None for chunk in chunks)
    wanted = full(model, *MEMORIES)
    assert off(composed(model, chunks, 1).logits, wanted) < 1e-3
    mixed = [chunks[0], chunks_of(model)[1], chunks[2]]
    assert composed(model, mixed, 0.15).recomputed == composed(model, chunks, 0.15).recomputed > 0


def test_neighbours_stand_before_the_chunk_and_leave_only_their_mark(model: torch.nn.Module) -> None:
    chunk = done(capture(model, PREFIX, MEMORIES[0], NEIGHBOURS))
    assert chunk.near is not None and chunk.score is not None
    assert (chunk.near.start, chunk.near.tokens, chunk.alone.start) == (len(PREFIX), len(MEMORIES[0]), len(PREFIX))
    assert chunk.score.shape == (len(MEMORIES[0]),) and float(chunk.score.min()) > 0
    # In the first layer keys and values depend on the token alone, wherever it stands.
    assert off(chunk.near.keys[0], chunk.alone.keys[0]) < 1e-5
    assert off(chunk.near.keys[4], chunk.alone.keys[4]) > 0.01
    stack = taken_apart(model)
    there = [*PREFIX, *chain(*NEIGHBOURS), *MEMORIES[0]]
    cache = blank(stack, len(there))
    done(prefill(stack, there, cache, 0))
    assert off(cut(cache, len(there) - 40, len(there)).values[4], chunk.near.values[4]) < 1e-5


def test_each_two_neighbours_are_a_context_and_near_is_the_mean_over_contexts(model: torch.nn.Module) -> None:
    third = ids(33, 15)
    both = done(capture(model, PREFIX, MEMORIES[0], [*NEIGHBOURS, third])).near
    one = done(capture(model, PREFIX, MEMORIES[0], NEIGHBOURS)).near
    other = done(capture(model, PREFIX, MEMORIES[0], [third])).near
    assert both and one and other
    for mean, a, b in zip((*both.keys, *both.values), (*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        assert off(mean, (a + b) / 2) < 1e-5


def test_a_merged_cache_is_a_chunk_again(model: torch.nn.Module) -> None:
    chunks, prefix = chunks_of(model), prefix_of(model)
    merged = done(merge(model, prefix, chunks, 1))
    assert (merged.token_ids, merged.alone.start) == (tuple(chain(*MEMORIES)), len(PREFIX))
    assert off(composed(model, [merged], 0).logits, full(model, *MEMORIES)) < 1e-3
    repaired, bare = done(merge(model, prefix, chunks, 0.3)), done(merge(model, prefix, chunks, 0))
    wanted = full(model, *MEMORIES)
    assert off(composed(model, [repaired], 0).logits, wanted) < off(composed(model, [bare], 0).logits, wanted)
    again = composed(model, [chunks[1], repaired], 1)
    assert off(again.logits, full(model, MEMORIES[1], *MEMORIES)) < 1e-3


def test_composing_never_writes_into_a_chunk(model: torch.nn.Module) -> None:
    chunks, prefix = chunks_of(model), prefix_of(model)
    kept = [t for s in (prefix, *(c.alone for c in chunks), *(c.near for c in chunks if c.near)) for t in (*s.keys, *s.values)]
    before = [t.clone() for t in kept]
    composed(model, chunks, 0.5)
    done(compose(model, prefix, chunks, QUESTION, 0.5))
    done(merge(model, prefix, chunks, 0.5))
    assert all(torch.equal(one, other) for one, other in zip(before, kept, strict=True))


def test_long_work_pauses_between_blocks(model: torch.nn.Module) -> None:
    assert sum(1 for _ in capture(model, PREFIX, ids(1000, 13), [ids(300, 14)])) >= 9
    assert sum(1 for _ in compose(model, prefix_of(model), chunks_of(model), QUESTION, 0.15)) >= 5
    assert torch.is_grad_enabled(), "a paused job leaves gradients as it found them"


def test_other_models_are_refused_by_name() -> None:
    other = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(MemModel, match="gpt2"):
        supported(other)
    sliding = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16))
    with pytest.raises(MemModel, match="sliding"):
        supported(sliding)
    shared = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=2)
    with pytest.raises(MemModel, match="sliding"):
        supported(Qwen2ForCausalLM(shared))
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(MemModel, match="dynamic"):
        supported(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=dynamic)))
    with pytest.raises(MemModel, match="whole heads"):
        Rotary.of(torch.nn.Module(), 8)


def test_requests_that_make_no_sense_are_refused(model: torch.nn.Module) -> None:
    chunk, prefix = chunks_of(model)[0], prefix_of(model)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(MemInvalid, match="share"):
            done(compose(model, prefix, [chunk], QUESTION, share))
    with pytest.raises(MemInvalid, match="at least one token"):
        done(compose(model, prefix, [chunk], [], 0.1))
    with pytest.raises(MemInvalid, match="without tokens"):
        done(capture(model, PREFIX, [], ()))
    with pytest.raises(MemInvalid, match="nothing to merge"):
        done(merge(model, prefix, [], 0.1))
    fewer = replace(chunk, token_ids=chunk.token_ids[1:])
    shallow = replace(chunk, alone=chunk.alone._replace(keys=chunk.alone.keys[1:]))
    assert chunk.near is not None
    narrow = replace(chunk, near=chunk.near._replace(values=tuple(v[..., :4] for v in chunk.near.values)))
    for wrong in (fewer, shallow, narrow):
        with pytest.raises(MemModel, match="none of"):
            done(compose(model, prefix, [wrong], QUESTION, 0.1))
