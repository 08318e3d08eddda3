"""Caches over stored segments: the same answers as a full forward, and segments that nothing writes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import lm  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MistralConfig  # noqa: E402

from memos_drivers.lm.past import GROWTH, Segment, segment_of, supported  # noqa: E402
from memos_drivers.lm.past import past as typed_past  # noqa: E402
from memos_syscalls.errors import MemInvalid, MemModel  # noqa: E402

tiny = lm.tiny
IDS = [0, *[(7 * n * n + 3 * n) % 400 + 3 for n in range(60)]]
past: Any = typed_past
CUT = 20
STORED = 45


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny)


@pytest.fixture(scope="module")
def segments(model: Any) -> tuple[Segment, Segment]:
    """Tokens 0…19 and 20…44 of one prefill."""
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([IDS[:STORED]]), past_key_values=cache)
    return segment_of(cache, 0, CUT), segment_of(cache, CUT, STORED)


@pytest.fixture(autouse=True)
def untouched(segments: tuple[Segment, Segment]) -> Any:
    """Every test leaves the segments as they were."""
    before = [tensor.clone() for one in segments for tensor in (*one.keys, *one.values)]
    yield
    after = [tensor for one in segments for tensor in (*one.keys, *one.values)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def full(model: Any, ids: list[int] = IDS) -> Any:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


def test_nothing_is_copied_before_the_first_forward(segments: Any) -> None:
    cache = past(segments, room=8)
    run: Any = vars(cache.layers[0])["_keys"]
    assert cache.get_seq_length() == STORED and run.buffer is None
    assert run.parts[1].data_ptr() == segments[1].keys[0].data_ptr()


def test_a_forward_behind_segments_equals_a_full_forward(model: Any, segments: Any) -> None:
    cache = past(segments, room=len(IDS))
    with torch.no_grad():
        logits = model(torch.tensor([IDS[STORED:]]), past_key_values=cache).logits
    assert (logits - full(model)[:, STORED:]).abs().max() < 1e-4
    assert cache.get_seq_length() == len(IDS)


def test_decoding_appends_in_place_and_grows_when_the_room_is_used_up(model: Any, segments: Any) -> None:
    cache, places, found = past(segments, room=4), set[int](), list[Any]()
    with torch.no_grad():
        for token in IDS[STORED:]:
            found.append(model(torch.tensor([[token]]), past_key_values=cache).logits)
            places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 2, f"one buffer, and one more when it was full; {GROWTH} tokens more each time"
    assert (torch.cat(found, 1) - full(model)[:, STORED:]).abs().max() < 1e-4


WAYS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": True, "temperature": 0.8, "top_k": 20},
    {"do_sample": False, "num_beams": 3},
    {"do_sample": True, "num_return_sequences": 3},
    {"do_sample": False, "num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way))
def test_generate_goes_on_as_without_a_cache_and_may_do_so_twice(model: Any, segments: Any, way: dict[str, Any]) -> None:
    def go(cache: Any) -> list[list[int]]:
        torch.manual_seed(5)
        ids = torch.tensor([IDS])
        mask = torch.ones_like(ids)
        made: Any = model.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=24, eos_token_id=None, pad_token_id=2, **way
        )
        found: list[list[int]] = made.tolist()
        return found

    plain = go(None)
    assert go(past(segments, room=30)) == plain
    assert go(past(segments, room=2)) == plain
    assert len(plain[0]) == len(IDS) + 24


def test_a_cache_records_its_past_once_it_was_used(model: Any, segments: Any) -> None:
    """Generation on a GPU asks for it behind its first forward; assisted decoding before, and would answer wrongly."""
    cache = past(segments, room=8)
    with pytest.raises(MemInvalid, match="assisted decoding"):
        cache.activate_past_recording()
    with torch.no_grad():
        model(torch.tensor([[5]]), past_key_values=cache)
    cache.activate_past_recording()
    cache.crop(-1)
    assert cache.get_seq_length() == STORED


def test_a_written_layer_tensor_is_the_caches_own(segments: Any) -> None:
    one = past(segments[:1], room=4)
    one.layers[0].keys.zero_()
    assert one.layers[0].keys.abs().sum() == 0
    assert past(segments[:1], room=4).layers[0].keys.abs().sum() > 0


def test_a_cropped_cache_goes_on_from_where_it_was_cut(model: Any, segments: Any) -> None:
    early, late = past(segments, room=40), past(segments, room=40)
    early.crop(-10)
    assert early.get_seq_length() == STORED - 10
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]), past_key_values=late)
        late.crop(-13)
        for cache in (early, late):
            logits = model(torch.tensor([IDS[STORED - 10 :]]), past_key_values=cache).logits
            assert (logits - full(model)[:, STORED - 10 :]).abs().max() < 1e-4
    early.crop(0)
    assert early.get_seq_length() == len(IDS)
    with pytest.raises(MemInvalid):
        early.crop(5)


def test_rows_are_repeated_chosen_and_reordered(model: Any, segments: Any) -> None:
    cache = past(segments, room=40)
    cache.batch_repeat_interleave(2)
    with torch.no_grad():
        model(torch.tensor([IDS[STORED:], [9] * (len(IDS) - STORED)]), past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_select_indices(torch.tensor([False, True]))
        cache.batch_repeat_interleave(3)
        logits = model(torch.tensor([[11]] * 3), past_key_values=cache).logits
    wanted = full(model, [*IDS, 11])[:, -1:]
    assert logits.shape[0] == 3 and (logits - wanted).abs().max() < 1e-4
    with pytest.raises(MemInvalid, match="3 sequences and the input has 2"):
        model(torch.tensor([[1], [2]]), past_key_values=cache)


def test_a_gradient_flows_through_a_forward_behind_segments(model: Any, segments: Any) -> None:
    cache = past(segments, room=4)
    weight = model.model.layers[0].self_attn.k_proj.weight
    model(torch.tensor([[5]]), past_key_values=cache)
    model(torch.tensor([[6]]), past_key_values=cache).logits.sum().backward()
    assert weight.grad.abs().sum() > 0
    model.zero_grad()


def test_a_cache_filled_in_inference_mode_goes_on_outside(model: Any, segments: Any) -> None:
    cache = past(segments, room=40)
    with torch.inference_mode():
        model(torch.tensor([IDS[STORED:50]]), past_key_values=cache)
    with torch.no_grad():
        logits = model(torch.tensor([IDS[50:]]), past_key_values=cache).logits
    assert (logits - full(model)[:, 50:]).abs().max() < 1e-4


def test_segments_of_another_float_type_are_moved_by_the_one_copy(model: Any, segments: Any) -> None:
    half = [Segment(tuple(t.half() for t in s.keys), tuple(t.half() for t in s.values), s.start) for s in segments]
    with torch.no_grad():
        logits = model(torch.tensor([IDS[STORED:]]), past_key_values=past(half, room=4)).logits
    assert (logits - full(model)[:, STORED:]).abs().max() < 0.05


def test_reset_empties_the_cache_and_it_can_be_filled_again(model: Any, segments: Any) -> None:
    cache = past(segments, room=4)
    cache.reset()
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        logits = model(torch.tensor([IDS]), past_key_values=cache).logits
    assert (logits - full(model)).abs().max() < 1e-4


def test_a_slice_of_a_cache_is_a_copy_and_knows_its_place(model: Any, segments: Any) -> None:
    cache = past(segments, room=4)
    part = segment_of(cache, 15, 30)
    assert (part.start, part.tokens) == (15, 15)
    assert torch.equal(part.values[1][:, :, :5], segments[0].values[1][:, :, 15:])
    part.keys[0].zero_()
    assert torch.equal(cache.layers[0].keys[:, :, :CUT], segments[0].keys[0])


def test_segments_out_of_place_are_refused(segments: Any) -> None:
    with pytest.raises(MemInvalid, match="position 20 stands at position 0"):
        past(segments[1:], room=1)
    with pytest.raises(MemInvalid, match="position 0 stands at position 45"):
        past([*segments, segments[0]], room=1)
    short = Segment(segments[1].keys[:1], segments[1].values[:1], CUT)
    with pytest.raises(MemModel, match="1 layers follows one of 2"):
        past([segments[0], short], room=1)
    with pytest.raises(MemInvalid, match="tokens 40 to 60"):
        segment_of(past(segments), 40, 60)
    assert past([]).get_seq_length() == 0


def test_models_that_do_not_keep_every_token_are_refused() -> None:
    supported(LlamaConfig(num_hidden_layers=2))
    with pytest.raises(MemModel, match="sliding-window"):
        supported(MistralConfig(num_hidden_layers=2, sliding_window=16))
    supported(MistralConfig(num_hidden_layers=2, sliding_window=None))
    from transformers import DeepseekV3Config, MambaConfig, Qwen3NextConfig, T5Config

    for other in (DeepseekV3Config(), MambaConfig(num_hidden_layers=2), Qwen3NextConfig(), T5Config()):
        with pytest.raises(MemModel):
            supported(other)
    factors = [1.0] * 8
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors, "factor": 2.0}
    rope["original_max_position_embeddings"] = 64
    with pytest.raises(MemModel, match="longrope"):
        supported(LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, rope_parameters=rope))
