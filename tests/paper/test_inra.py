"""InRa against two separate stock models (the base, and the expanded checkpoint), run with plain PyTorch."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GPT2Config, T5Config

from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.paper.streams import Streams

VOCAB = 61
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 4}
ARCHITECTURES = {
    "qwen2": SHAPE,
    "qwen2-sliding": {**SHAPE, **SLIDING, "use_sliding_window": True},
    "qwen2-tied": {**SHAPE, "tie_word_embeddings": True},
    "qwen3": SHAPE,
    "llama": {**SHAPE, "attention_bias": True, "mlp_bias": True},
    "mistral": {**SHAPE, "sliding_window": 4},
    "gemma3_text": {**SHAPE, **SLIDING, "tie_word_embeddings": True, "query_pre_attn_scalar": 8},
    "gemma2": {**SHAPE, **SLIDING, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
}
ALPHAS = [-0.5, 0.0, 0.3, 1.0, 1.7]


def make_base(name, seed=0):
    config = AutoConfig.for_model(name.split("-")[0], **ARCHITECTURES[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # biases start at zero, which would hide that they are not zeroed in the adapter
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias"):
                    parameter.normal_(std=0.2)
    return model.eval()


def train_a_little(model, seed=5):
    """Move the adapter away from the identity, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.adapter_layers:
            for parameter in layer.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@pytest.fixture(params=ARCHITECTURES)
def models(request, tmp_path):
    """(InRa, stock base, stock expanded): the last loaded from what InRa saved, by Transformers alone."""
    base = make_base(request.param)
    inra = train_a_little(InRaForCausalLM.from_base(base))
    inra.save_pretrained(tmp_path / "inra")
    expanded = AutoModelForCausalLM.from_pretrained(tmp_path / "inra").eval()
    assert type(expanded) is type(base)
    assert expanded.config.num_hidden_layers == 4
    return inra, base, expanded


@pytest.fixture
def batch():
    """Five left-padded rows of different lengths."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, VOCAB, (5, 9), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row, padding in enumerate([0, 4, 2, 6, 1]):
        input_ids[row, :padding] = 0
        attention_mask[row, :padding] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def positions(attention_mask):
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def plain_logits(base, expanded, tokens, alpha, places=slice(None)):
    """z(alpha) for one unpadded row of tokens, at these places of it, without a cache: [T, V]."""
    ids = torch.tensor([tokens])
    return (1 - alpha) * base(ids).logits[0, places] + alpha * expanded(ids).logits[0, places]


@torch.no_grad()
def assert_greedy(texts, base, expanded, batch, alphas):
    """Each of the `texts` takes, token by token, the most likely one of the formula over two stock models.

    Most likely to within 1e-3: rounding, which is another on another processor, may decide between two logits that are
    nearer to each other. `alphas[row]` is a number, or a tensor with one for each token.
    """
    for text, ids, mask, alpha in zip(texts, batch["input_ids"], batch["attention_mask"], alphas, strict=True):
        prompt = ids[mask.bool()].tolist()
        at_tokens = torch.as_tensor(alpha).expand(len(text))[:, None]
        z = plain_logits(base, expanded, prompt + text.tolist(), at_tokens, slice(len(prompt) - 1, -1))
        chosen = z[torch.arange(len(text)), text]
        assert (z.max(-1).values - chosen).max() < 1e-3


def greedy(model, batch, steps=12, **kwargs):
    width = batch["input_ids"].shape[1]
    kwargs = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **kwargs}
    return model.generate(**batch, **kwargs)[:, width:]


@pytest.mark.parametrize("alpha", ALPHAS)
@torch.no_grad()
def test_logits_equal_the_formula_over_two_stock_models(models, batch, alpha):
    inra, base, expanded = models
    logits = inra(**batch, position_ids=positions(batch["attention_mask"]), alpha=alpha).logits
    for row, mask in enumerate(batch["attention_mask"].bool()):
        expected = plain_logits(base, expanded, batch["input_ids"][row, mask].tolist(), alpha)
        torch.testing.assert_close(logits[row, mask], expected, rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_a_different_alpha_in_each_row(models, batch):
    inra, base, expanded = models
    logits = inra(**batch, position_ids=positions(batch["attention_mask"]), alpha=ALPHAS).logits
    for row, mask in enumerate(batch["attention_mask"].bool()):
        expected = plain_logits(base, expanded, batch["input_ids"][row, mask].tolist(), ALPHAS[row])
        torch.testing.assert_close(logits[row, mask], expected, rtol=1e-5, atol=2e-5)


def plausible(base, expanded, tokens, beta):
    """Ids that at least one of both stock models gives beta times the best one's probability: bool [T, V]."""
    ids = torch.tensor([tokens])
    best = torch.maximum(*(torch.softmax(model(ids).logits[0].double(), -1) for model in (base, expanded)))
    return best >= beta * best.max(-1, keepdim=True).values


@torch.no_grad()
def test_implausible_tokens_have_no_probability_but_at_the_ends(models, batch):
    inra, base, expanded = models
    logits = inra(**batch, position_ids=positions(batch["attention_mask"]), alpha=ALPHAS, plausibility=0.2).logits
    for row, mask in enumerate(batch["attention_mask"].bool()):
        tokens = batch["input_ids"][row, mask].tolist()
        expected = plain_logits(base, expanded, tokens, ALPHAS[row])
        if ALPHAS[row] not in (0, 1):
            keep = plausible(base, expanded, tokens, 0.2)
            assert 0 < keep.float().mean() < 1
            expected = expected.masked_fill(~keep, -torch.inf)
        torch.testing.assert_close(logits[row, mask], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@torch.no_grad()
def test_an_end_keeps_its_bits_beside_masked_rows(batch, alpha):
    inra = train_a_little(InRaForCausalLM.from_base(make_base("qwen2")))
    beside = torch.tensor([alpha, 2.0, 2.0, 2.0, 2.0])
    kept, all_at_it, ruled = (
        inra(**batch, alpha=beside, plausibility=0.2),
        inra(**batch, alpha=alpha, plausibility=0.2),
        inra(**batch, alpha=torch.full((5,), alpha), plausibility=0.2, both_streams=True),
    )
    stock = inra(**batch, alpha=alpha).logits
    torch.testing.assert_close(
        kept.logits[0], stock[0], rtol=1e-5, atol=1e-5
    )  # other rows change a product's last bits
    assert torch.equal(all_at_it.logits, stock)
    assert torch.isfinite(ruled.logits).all()


@torch.no_grad()
def test_greedy_text_with_a_mask_equals_plain_decoding_and_may_keep_a_schedule(batch):
    inra = train_a_little(InRaForCausalLM.from_base(make_base("qwen2")))
    by_step = [1.7, 0.3, -0.5, 5.0]

    def schedule(step, row):
        return by_step[step % 4]

    texts = greedy(inra, batch, alpha=schedule, plausibility=0.3)
    for text, ids, mask in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
        prompt = ids[mask.bool()].tolist()
        own = slice(len(prompt) - 1, len(prompt) + len(text) - 1)
        tokens = prompt + text.tolist()
        alphas = torch.tensor([by_step[step % 4] for step in range(len(text))])[:, None]
        z_ref, z_aligned = inra(torch.tensor([tokens]), alpha=0.0), inra(torch.tensor([tokens]), alpha=1.0)
        z = (1 - alphas) * z_ref.logits[0, own] + alphas * z_aligned.logits[0, own]
        best = torch.maximum(*(torch.softmax(one.logits[0, own].double(), -1) for one in (z_ref, z_aligned)))
        z = z.masked_fill(best < 0.3 * best.max(-1, keepdim=True).values, -torch.inf)
        assert (z.max(-1).values - z[torch.arange(len(text)), text]).max() < 1e-3


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_text_equals_plain_decoding(models, batch, use_cache):
    inra, base, expanded = models
    assert_greedy(greedy(inra, batch, alpha=ALPHAS, use_cache=use_cache), base, expanded, batch, ALPHAS)
    for alpha in (0.0, 1.7):
        assert_greedy(greedy(inra, batch, alpha=alpha, use_cache=use_cache), base, expanded, batch, [alpha] * 5)


def mixed_logits_of_two_passes(inra, batch, alphas):
    """z(alpha) [B, T, V] from each stream's own logits, in float64."""
    reference, aligned = (inra(**batch, alpha=alpha).logits.double() for alpha in (0.0, 1.0))
    weights = torch.tensor(alphas, dtype=torch.float64)[:, None, None]
    return (1 - weights) * reference + weights * aligned


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@torch.no_grad()
def test_mixing_before_the_head_equals_mixing_logits(models, batch, dtype, tolerance):
    if not models[0].linear_head:
        dtype, tolerance = torch.float32, 1e-5  # Gemma 2 in float64 takes fully masked rows to NaN
    inra = InRaForCausalLM(models[0].expanded.to(dtype), models[0].inra)
    alphas = [-0.5, 0.0, 0.25, 1.0, 4.5]  # exact in float32
    expected = mixed_logits_of_two_passes(inra, batch, alphas)
    close = {"rtol": tolerance, "atol": tolerance * expected.abs().max().item()}
    torch.testing.assert_close(inra(**batch, alpha=alphas).logits.double(), expected, **close)
    for keep in (1, 4, torch.tensor([2, 7])):
        kept = inra(**batch, alpha=alphas, logits_to_keep=keep).logits.double()
        torch.testing.assert_close(kept, expected[:, keep if torch.is_tensor(keep) else slice(-keep, None)], **close)
    ends = inra(**batch, alpha=[0.0, 1.0, 0.0, 1.0, 0.5]).logits.double()
    torch.testing.assert_close(ends[0], inra(**batch, alpha=0.0).logits[0].double(), **close)
    torch.testing.assert_close(ends[1], inra(**batch, alpha=1.0).logits[1].double(), **close)


def final_hidden_states(inra, batch, **kwargs):
    """(logits, final hidden states of stream A, of stream R) of one call that runs both streams for all rows."""
    states = []
    hook = inra.expanded.get_decoder().register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    logits = inra(**batch, both_streams=True, **kwargs).logits
    hook.remove()
    return logits, *states[0].chunk(2)


def test_rows_are_mixed_with_none_but_themselves():
    """Row 0 runs through stream R, row 1 through both, row 2 through A: what is not finite stays in its row."""
    alphas = torch.tensor([0.0, 0.25, 1.0])
    streams = Streams(torch.tensor([1, 2]), torch.tensor([0, 1]), alphas, torch.device("cpu"))
    states = torch.tensor([[8.0, 3.0, 2.0, 4.0], [torch.inf, 3.0, 2.0, torch.inf]], dtype=torch.bfloat16)
    finite, infinite = (streams.mix(of_streams[:, None, None]) for of_streams in states)  # A1, A2, R0, R1
    assert finite.dtype == torch.float32
    assert finite.flatten().tolist() == [2.0, 5.0, 3.0]
    assert infinite.flatten().tolist() == [2.0, torch.inf, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_an_end_keeps_its_bits_while_both_streams_run(batch, dtype):
    """As they do under a schedule: at alpha 0 and 1 the mixture is one of the streams, unrounded."""
    inra = train_a_little(InRaForCausalLM.from_base(make_base("qwen2"))).to(dtype)
    for alpha in (0.0, 1.0):
        logits, *streams = final_hidden_states(inra, batch, alpha=alpha)
        assert torch.equal(logits, inra.expanded.lm_head(streams[0] if alpha else streams[1]))


@torch.no_grad()
def test_mixing_in_half_precision_rounds_the_mixture_once(batch):
    """At alpha 5 in bfloat16, against float64 from the same final hidden states: no worse than mixing logits that were
    rounded to bfloat16 each, by more than half."""
    inra = train_a_little(InRaForCausalLM.from_base(make_base("qwen2"))).to(torch.bfloat16)
    logits, *streams = (states.double() for states in final_hidden_states(inra, batch, alpha=5.0))
    head = inra.expanded.lm_head.weight.double()
    exact = (5 * streams[0] - 4 * streams[1]) @ head.T
    of_logits = 5 * (streams[0] @ head.T).bfloat16().double() - 4 * (streams[1] @ head.T).bfloat16().double()
    assert (logits - exact).abs().mean() < 1.5 * (of_logits - exact).abs().mean()
    assert (logits - exact).abs().max() < 2**-7 * exact.abs().max()
    assert logits.equal(((5 * streams[0] - 4 * streams[1]).bfloat16() @ head.bfloat16().T).double())


@pytest.mark.parametrize(
    ("name", "changes", "linear"),
    [
        *((name, {}, name != "gemma2") for name in ARCHITECTURES),
        ("gemma2", {"final_logit_softcapping": None}, True),
        ("granite", {"logits_scaling": 3.0}, False),
        ("granite", {"logits_scaling": 1.0}, True),
    ],
)
def test_only_a_linear_head_is_used_once(batch, name, changes, linear, caplog):
    """Seen at the head: as many rows as the batch has if it is linear, else those of both streams."""
    caplog.set_level("INFO")
    config = AutoConfig.for_model(name.split("-")[0], **{**ARCHITECTURES.get(name, SHAPE), **changes})
    for dtype in (torch.float32, torch.bfloat16):
        caplog.clear()
        inra = InRaForCausalLM.from_base(AutoModelForCausalLM.from_config(config).to(dtype).eval())
        assert inra.linear_head == linear
        assert ("the head is not linear" in caplog.text) == (not linear)
        seen = []
        inra.expanded.get_output_embeddings().register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(args[0].shape[0])
        )
        with torch.no_grad():
            logits = inra(**batch, alpha=[0.3, 0.0, 1.0, 1.7, 0.5], logits_to_keep=1).logits
        assert logits.shape == (5, 1, VOCAB)
        assert seen == [5 if linear else 8]


def test_ends_are_the_stock_models_to_the_bit(models, batch):
    inra, base, expanded = models
    with torch.no_grad():
        assert torch.equal(inra(**batch, alpha=0.0).logits, base(**batch).logits)
        assert torch.equal(inra(**batch, alpha=1.0).logits, expanded(**batch).logits)
    assert torch.equal(greedy(inra, batch, alpha=0.0), greedy(base, batch))
    assert torch.equal(greedy(inra, batch, alpha=1.0), greedy(expanded, batch))


def test_alpha_may_change_from_token_to_token(models, batch):
    inra, base, expanded = models

    def schedule(step, row):
        return 0.1 * row + (1.2 if step >= 5 else 0.0)

    alphas = [torch.tensor([schedule(step, row) for step in range(12)]) for row in range(5)]
    assert_greedy(greedy(inra, batch, alpha=schedule), base, expanded, batch, alphas)


def test_a_fresh_adapter_changes_nothing_and_a_random_one_does(models, batch):
    _, base, _ = models
    with torch.no_grad():
        logits = base(**batch).logits
        for count in (1, 3):
            fresh = InRaForCausalLM.from_base(base, num_adapter_layers=count)
            assert torch.equal(fresh(**batch, alpha=1.0).logits, logits)
            assert torch.equal(fresh(**batch, alpha=0.0).logits, logits)
        random = InRaForCausalLM.from_base(base, init="random")
        assert torch.equal(random(**batch, alpha=0.0).logits, logits)
        assert not torch.allclose(random(**batch, alpha=1.0).logits, logits, atol=1e-2)
        assert torch.equal(base(**batch).logits, logits), "the base model given is left alone"


@pytest.mark.parametrize(("count", "placement"), [(2, "bottom"), (1, "top"), (2, "top")])
def test_more_layers_and_the_other_end_are_saved_and_loaded(models, batch, tmp_path, count, placement):
    _, base, _ = models
    made = train_a_little(InRaForCausalLM.from_base(base, num_adapter_layers=count, placement=placement))
    made.save_pretrained(tmp_path / "more")
    expanded = AutoModelForCausalLM.from_pretrained(tmp_path / "more").eval()
    assert expanded.config.num_hidden_layers == 3 + count
    loaded = InRaForCausalLM.from_pretrained(tmp_path / "more")
    assert loaded.inra == made.inra
    assert torch.equal(greedy(loaded, batch, alpha=0.4), greedy(made, batch, alpha=0.4))
    assert_greedy(greedy(loaded, batch, alpha=ALPHAS), base, expanded, batch, ALPHAS)


def test_a_foreign_expanded_checkpoint_loads(models, batch, tmp_path):
    """Made by hand, with no word of ours in it, and in shards."""
    inra, _, expanded = models
    expanded.save_pretrained(tmp_path / "foreign", max_shard_size="20KB")
    assert len(list((tmp_path / "foreign").glob("*.safetensors"))) > 1
    assert not (tmp_path / "foreign" / "inra_config.json").exists()
    loaded = InRaForCausalLM.from_pretrained(tmp_path / "foreign")
    assert torch.equal(greedy(loaded, batch, alpha=ALPHAS), greedy(inra, batch, alpha=ALPHAS))


def test_adapter_starts_with_zero_projections_and_copies_the_rest():
    base = make_base("llama")
    adapter = InRaForCausalLM.from_base(base).adapter_layers[0].state_dict()
    for name, weight in base.model.layers[0].state_dict().items():
        if "o_proj" in name or "down_proj" in name:
            assert torch.count_nonzero(weight) > 0
            assert torch.count_nonzero(adapter[name]) == 0
        else:
            assert torch.equal(adapter[name], weight)


def test_sampling_with_several_sequences_shares_a_prompts_alpha(batch):
    base = make_base("qwen2")
    inra = train_a_little(InRaForCausalLM.from_base(base))
    two = {key: value[:2] for key, value in batch.items()}
    several = greedy(inra, two, alpha=[0.0, 0.6], do_sample=True, top_k=1, num_return_sequences=3)
    assert several.shape[0] == 6
    rows = {key: value.repeat_interleave(3, dim=0) for key, value in two.items()}
    assert_greedy(several, base, inra.expanded, rows, [0.0] * 3 + [0.6] * 3)


def test_a_conversation_goes_on_at_another_alpha_with_both_caches(models):
    inra, base, expanded = models
    prompt, reply = [5, 9, 14, 23], [31, 8, 40]

    def turn_of(tokens, **kwargs):
        return inra.generate(torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens)), max_new_tokens=6,
                             do_sample=False, eos_token_id=None, return_dict_in_generate=True, **kwargs)  # fmt: skip

    first = turn_of(prompt, alpha=0.0, both_streams=True, past_key_values=DynamicCache(config=inra.config))
    turn = first.sequences[0].tolist()
    second = turn_of(turn + reply, alpha=1.4, past_key_values=first.past_key_values).sequences
    batch = {"input_ids": torch.tensor([turn + reply]), "attention_mask": torch.ones(1, 13, dtype=torch.long)}
    assert first.past_key_values.get_seq_length() == 13 + 5
    assert_greedy(second[:, 13:], base, expanded, batch, [1.4])


def test_rows_run_through_the_streams_they_need_and_no_more(batch):
    inra = train_a_little(InRaForCausalLM.from_base(make_base("qwen2")))
    seen = []
    inra.expanded.model.layers[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    adapter_seen = []
    inra.adapter_layers[0].self_attn.o_proj.register_forward_hook(
        lambda module, args, output: adapter_seen.append(output.shape[0])
    )
    with torch.no_grad():
        for alpha in (0.0, 1.0, 0.5, [0, 1, 0.5, 0, 1]):
            inra(**batch, alpha=alpha)
    assert seen == [5, 5, 10, 6]
    assert adapter_seen == [5, 5, 3]


@pytest.mark.parametrize("placement", ["bottom", "top"])
@pytest.mark.parametrize("alphas", [ALPHAS, [0.0] * 5, [1.0] * 5, [0.4] * 5, [0.0, 1.0, 0.0, 1.0, 0.0]])
@torch.no_grad()
def test_rows_dropped_from_the_cache_leave_the_others_as_they_were(batch, alphas, placement):
    inra = train_a_little(InRaForCausalLM.from_base(make_base("qwen2-sliding"), placement=placement))
    cache, whole = (inra(**batch, alpha=alphas, use_cache=True).past_key_values for _ in range(2))
    rows = torch.arange(5)
    for step, keep in enumerate(map(torch.tensor, ([4, 1, 3], [2, 1], [0]))):  # out of order too
        rows = rows[keep]
        cache.batch_select_indices(keep)
        tokens = torch.full((5, 1), 7 + step)
        seen = torch.cat([batch["attention_mask"], torch.ones(5, step + 1, dtype=torch.long)], dim=1)
        more = {"attention_mask": seen, "position_ids": positions(seen)[:, -1:]}
        expected = inra(tokens, **more, past_key_values=whole, use_cache=True, alpha=alphas).logits[rows]
        more = {name: value[rows] for name, value in more.items()}
        alpha = [alphas[row] for row in rows]
        got = inra(tokens[rows], **more, past_key_values=cache, use_cache=True, alpha=alpha).logits
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_going_on_from_a_cache_without_the_stream_is_refused(batch):
    inra = InRaForCausalLM.from_base(make_base("qwen2"))
    cache = inra(**batch, alpha=[0, 0, 1, 1, 0.5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"rows \[0, 1\] need stream A"):
        inra(batch["input_ids"][:, -1:], alpha=0.5, past_key_values=cache, use_cache=True)


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        ([0.1, 0.2], "one for each of the 5 rows"),
        (torch.zeros(6), "one for each of the 5 rows"),
        (float("nan"), "alpha must be finite"),
        ([0, 0, float("inf"), 0, 0], "alpha must be finite"),
        (lambda step, row: float("nan"), "alpha must be finite"),
    ],
)
def test_bad_alphas_are_refused(batch, alpha, message):
    inra = InRaForCausalLM.from_base(make_base("qwen2"))
    with pytest.raises(ValueError, match=message):
        greedy(inra, batch, alpha=alpha)


def test_beam_search_is_refused(batch):
    with pytest.raises(ValueError, match="beam search"):
        greedy(InRaForCausalLM.from_base(make_base("qwen2")), batch, num_beams=2)


def test_other_architectures_are_refused_by_name(tmp_path):
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is not supported"):
        InRaForCausalLM.from_base(gpt2)
    T5Config(d_model=16, num_layers=1).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="T5Config is an encoder-decoder model"):
        InRaForCausalLM.from_base(tmp_path / "t5")


def test_an_adapter_of_another_base_is_refused(tmp_path):
    for seed in (1, 2):
        make_base("qwen2", seed).save_pretrained(tmp_path / str(seed))
    InRaForCausalLM.from_base(tmp_path / "1").save_pretrained(tmp_path / "inra")
    InRaForCausalLM.from_pretrained(tmp_path / "inra", base=tmp_path / "1")
    with pytest.raises(ValueError, match="trained from another base"):
        InRaForCausalLM.from_pretrained(tmp_path / "inra", base=tmp_path / "2")


def test_a_token_budget_rises_at_the_right_token():
    budget = TokenBudget(40, ramp=0.5, alpha=0.2, fast=1.0)
    assert [budget(step, 0) for step in (0, 19, 20)] == [0.2] * 3
    assert budget(25, 0) == pytest.approx(0.6)
    assert [budget(step, 3) for step in (30, 39)] == [1.0] * 2
    for bad in ({"budget": 0}, {"budget": 5, "ramp": 1.5}):
        with pytest.raises(ValueError, match="budget"):
            TokenBudget(**bad)
