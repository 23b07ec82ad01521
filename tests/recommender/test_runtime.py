"""Use of the machine: few shapes, checkpoints, offloading, small bases; answers stay."""

from __future__ import annotations

import contextlib
import copy
import functools

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from curerec.errors import ModelError
from curerec.prompts.encoding import Prompts
from curerec.recommender import quantise as module
from curerec.recommender import runtime
from curerec.recommender import tune as loop
from curerec.recommender.folding import folded
from curerec.recommender.quantise import held_bytes, quantise
from curerec.recommender.runtime import STEP, Offload, RuntimeConfig, compiled_layers, compiles
from curerec.recommender.score import answer_logits, score, to_batch
from curerec.recommender.storage import load_frozen
from curerec.recommender.tune import TuneConfig, tune
from made_cases import soaked
from made_families import lora_on, made_family_model
from made_few_bits import Linear8bitLt, put_in_place
from made_models import ALL, made_model, made_prompts, with_lora

PROMPTS, ENCODER = made_prompts(24)
WORDS = len(ENCODER.tokenizer)
CPU = torch.device("cpu")
CONFIG = TuneConfig(epochs=1, batch_size=6, lr=1e-2, optimizer="sgd")


def tuned(model, use):
    return tune(copy.deepcopy(model), PROMPTS, ENCODER.answers, CONFIG, seed=0, runtime=use)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("use", [RuntimeConfig(checkpoint=True), RuntimeConfig(offload_bytes=1 << 20)])
def test_checkpoints_and_offloading_change_no_weight(use, lora, monkeypatch):
    monkeypatch.setattr(runtime.Offload.__init__, "__kwdefaults__", {"smallest_bytes": 64})
    model = made_model(WORDS, layers=3)
    model = with_lora(model) if lora else model.requires_grad_(True)
    for a, b in zip(tuned(model, RuntimeConfig()).parameters(), tuned(model, use).parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_offloading_keeps_to_its_budget_and_gives_back_what_it_held():
    x = torch.randn(64, 64, requires_grad=True)
    offload = Offload(40_000, smallest_bytes=1000)
    with offload:
        y = (x.exp() * x.sin()).exp().sum()
    assert 16_384 <= offload.held_bytes <= 40_000
    (got,) = torch.autograd.grad(y, x)
    (want,) = torch.autograd.grad((x.exp() * x.sin()).exp().sum(), x)
    assert torch.equal(got, want) and offload.held_bytes == 0 and offload.peak_bytes <= 40_000


def test_pinned_copies_count_as_the_blocks_that_torch_gives_them(monkeypatch):
    sizes = (0, 1, 2, 3, 1 << 20, (1 << 20) + 1)
    assert [runtime.counted(n, pinned=True) for n in sizes] == [0, 1, 2, 4, 1 << 20, 1 << 21]
    assert [runtime.counted(n, pinned=False) for n in sizes] == list(sizes)
    plain = runtime.counted
    monkeypatch.setattr(runtime, "counted", lambda size, pinned: plain(size, pinned=True))
    x = torch.randn(65, 64, requires_grad=True)  # 16,640 bytes, which take 32,768
    offload = Offload(100_000, smallest_bytes=1000)
    with offload:
        y = x
        for _ in range(6):
            y = y.exp()
    assert offload.held_bytes == offload.peak_bytes == 3 * 32_768
    y.sum().backward()
    assert offload.held_bytes == 0


@pytest.mark.parametrize("is_trained", [True, False])
def test_no_weight_is_offloaded(is_trained):
    layer = torch.nn.Linear(64, 32, bias=False).requires_grad_(is_trained)
    x = torch.randn(2, 16, 64, requires_grad=True)
    offload = Offload(1 << 20, smallest_bytes=64)
    with offload:
        y = layer(x).sum()  # of whose way back the transposed weight is a part
    assert offload.held_bytes == (x.numel() * 4 if is_trained else 0)
    y.backward()
    assert offload.held_bytes == 0 < x.grad.abs().sum()


def test_what_is_held_is_counted_until_the_graph_lets_go_of_it():
    x = torch.randn(64, 64, requires_grad=True)
    offload = Offload(1 << 20, smallest_bytes=64)
    with offload:
        y = x.exp().sin().sum()
    held = offload.held_bytes
    y.backward(retain_graph=True)
    assert offload.held_bytes == held > 0
    y.backward()
    assert offload.held_bytes == 0
    with offload:
        y = x.exp().sin().sum()
    del y  # without a way back
    assert offload.held_bytes == 0 and offload.peak_bytes == held


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch looks at it while it compiles
@pytest.mark.parametrize("lora", [soaked(False), True])
def test_a_compiled_training_ends_where_a_plain_one_ends(lora, monkeypatch):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    model = made_model(WORDS)
    model = with_lora(model) if lora else model.requires_grad_(True)
    want = tuned(model, RuntimeConfig())
    monkeypatch.setattr(loop, "compiled_layers", functools.partial(compiled_layers, backend=backend))
    got = tuned(model, RuntimeConfig(compile=True))
    assert graphs
    for before, a, b in zip(model.parameters(), want.parameters(), got.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert before.requires_grad != torch.equal(before, b)


def test_a_compiled_training_pads_no_further_than_the_positions_go(monkeypatch):
    """Of 100 positions and a prompt of 90 tokens the next multiple of 64 is 128."""
    ids = np.arange(4 * 90) % WORDS
    label = np.array([0, 1, 1, 0], np.int8)
    prompts = Prompts(ids, np.arange(5) * 90, np.zeros((0, 5), np.int32), label)
    model = made_family_model("gpt2", WORDS, max_position_embeddings=100).requires_grad_(True)
    widths = []
    model.transformer.wpe.register_forward_hook(lambda m, args, out: widths.append(args[0].shape[-1]))
    monkeypatch.setattr(loop, "compiled_layers", lambda model: contextlib.nullcontext())

    def ends(use):
        return tune(copy.deepcopy(model), prompts, ENCODER.answers, CONFIG, seed=0, runtime=use).parameters()

    for a, b in zip(ends(RuntimeConfig(compile=True)), ends(RuntimeConfig(compile=False)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert widths == [100, 90]


@pytest.mark.parametrize(
    ("most", "width"), [(None, 2 * STEP), (2 * STEP + 1, 2 * STEP), (STEP + 9, STEP + 9), (STEP, STEP + 1)]
)
def test_padding_ends_where_it_may_but_cuts_no_prompt(most, width):
    prompts = Prompts(np.arange(STEP + 1), np.array([0, STEP + 1]), np.zeros((0, 5), np.int32), np.ones(1))
    ids, last = to_batch(prompts, np.zeros(1, int), CPU, multiple=STEP, most=most)
    assert ids.shape == (1, width) and last.tolist() == [STEP]


def test_compiled_layers_see_few_shapes_and_are_plain_again():
    torch._dynamo.reset()
    shapes = []

    def backend(graph, inputs):
        shapes.append(tuple(x.shape for x in inputs if isinstance(x, torch.Tensor) and x.dim() == 3))
        return graph

    model = made_model(WORDS, layers=4)
    want = score(model, PROMPTS, ENCODER.answers)
    with compiled_layers(model, backend=backend), torch.no_grad():
        for index in np.array_split(np.argsort(PROMPTS.lengths), 4):
            ids, last = to_batch(PROMPTS, index, CPU, multiple=STEP)
            assert ids.shape[1] % STEP == 0
            got = answer_logits(model, ids, last, ENCODER.answers, lean=True).numpy()
            np.testing.assert_allclose(got, want[index], atol=1e-5)
    buckets = len(
        {-(-int(PROMPTS.lengths[i].max()) // STEP) for i in np.array_split(np.argsort(PROMPTS.lengths), 4)}
    )
    assert 0 < len(shapes) <= buckets  # one graph for all layers of a shape
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)


@pytest.mark.filterwarnings("ignore")  # torch says what it could not compile
def test_what_cannot_be_compiled_is_run_as_it_is():
    """As without a C compiler: a benchmark's originals would else all fail, and every cell wait for them."""
    torch._dynamo.reset()
    tried = []

    def backend(graph, inputs):
        tried.append(graph)
        raise RuntimeError("no compiler")

    model = made_model(WORDS, layers=3)
    want = score(model, PROMPTS, ENCODER.answers)
    with compiled_layers(model, backend=backend), torch.no_grad():
        ids, last = to_batch(PROMPTS, np.arange(4), CPU, multiple=STEP)
        got = answer_logits(model, ids, last, ENCODER.answers, lean=True).numpy()
    np.testing.assert_allclose(got, want[:4], atol=1e-5)
    assert tried


def test_compiling_is_for_long_trainings_on_a_gpu():
    assert not compiles(RuntimeConfig(), CPU, 10**6)
    assert compiles(RuntimeConfig(), torch.device("cuda"), 10**6)
    assert not compiles(RuntimeConfig(), torch.device("cuda"), 10)
    assert compiles(RuntimeConfig(compile=True), CPU, 1)
    assert not compiles(RuntimeConfig(), torch.device("cuda"), 10**6, spread=True)
    assert compiles(RuntimeConfig(compile=True), CPU, 1, spread=True)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_in_few_bits_is_small_answers_alike_and_trains(bits):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    model = made_family_model("llama", WORDS, scale=0.02, **sizes)
    want, before = score(model, PROMPTS, ENCODER.answers), held_bytes(model)
    small = quantise(copy.deepcopy(model), bits)
    got = score(small, PROMPTS, ENCODER.answers)
    assert held_bytes(small) < before * (0.6 if bits == 8 else 0.5)
    assert 0 < np.abs(got - want).max() < 0.5 * np.abs(want).max()
    adapted = get_peft_model(small, LoraConfig(r=4, target_modules=ALL, task_type="CAUSAL_LM")).eval()
    np.testing.assert_allclose(score(adapted, PROMPTS, ENCODER.answers), got, atol=1e-4)
    frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    after = tune(adapted, PROMPTS, ENCODER.answers, TuneConfig(epochs=2, batch_size=6, lr=1e-2), seed=0)
    assert np.abs(score(after, PROMPTS, ENCODER.answers) - got).max() > 0.05
    assert all(torch.equal(p, dict(after.named_parameters())[n]) for n, p in frozen.items())
    assert {p.dtype for p in after.parameters() if p.requires_grad} == {torch.float32}


def test_eight_bits_are_packed_where_they_are_to_be(tmp_path):
    """A module that is moved keeps its parameter, and with it the codes and scales of where it came from.

    Where there is one device, another name of it is what can be told apart.
    """
    made_model(WORDS).save_pretrained(tmp_path)
    ENCODER.tokenizer.save_pretrained(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch, "stand-in")
        model = load_frozen(tmp_path, 8, device="cpu:0")
    packed = [m.weight for m in model.modules() if isinstance(m, Linear8bitLt)]
    assert len(packed) == 2 * 7
    assert {p.packed_on for p in packed} == {torch.device("cpu:0")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_in_few_bits_answers_on_a_gpu(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    made_family_model("llama", WORDS, scale=0.02, **sizes).save_pretrained(tmp_path)
    ENCODER.tokenizer.save_pretrained(tmp_path)
    want = score(load_frozen(tmp_path, 16, device="cuda"), PROMPTS, ENCODER.answers)
    model = load_frozen(tmp_path, bits, device="cuda")
    held = [t for p in model.parameters() for t in (p, getattr(p, "CB", None), getattr(p, "SCB", None))]
    assert {t.device.type for t in held if t is not None} == {"cuda"}
    got = score(model, PROMPTS, ENCODER.answers)
    assert 0 < np.abs(got - want).max() < 0.5 * np.abs(want).max()


def test_few_bits_are_refused_where_they_cannot_be(monkeypatch):
    with pytest.raises(ModelError, match="family"):
        quantise(made_family_model("gpt2", WORDS), 4)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="bitsandbytes"):
        quantise(made_model(WORDS), 4)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_folded_adapter_answers_alike_and_leaves_every_weight(model_type):
    model = lora_on(made_family_model(model_type, WORDS))
    before = {n: (p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()}
    with folded(model):
        assert any(m.merged_adapters for m in model.modules() if hasattr(m, "merged_adapters"))
        got = answer_logits(model, *to_batch(PROMPTS, np.arange(24), CPU), ENCODER.answers)
    want = answer_logits(model, *to_batch(PROMPTS, np.arange(24), CPU), ENCODER.answers)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for n, p in model.named_parameters():
        assert p.data_ptr() == before[n][0] and torch.equal(p, before[n][1])
    with model.disable_adapter(), folded(model):
        assert not any(m.merged_adapters for m in model.modules() if hasattr(m, "merged_adapters"))


@pytest.mark.filterwarnings("ignore:.*lora_bias:UserWarning")
@pytest.mark.parametrize("more", ["lora_bias", "use_dora"])
def test_branches_that_are_more_than_a_product_are_not_folded(more):
    shape = LoraConfig(
        r=2, target_modules=ALL, init_lora_weights=False, task_type="CAUSAL_LM", **{more: True}
    )
    model = get_peft_model(made_model(WORDS), shape).eval()
    given = model, *to_batch(PROMPTS, np.arange(24), CPU), ENCODER.answers
    want = answer_logits(*given)
    with folded(model):
        assert torch.equal(answer_logits(*given), want)


@pytest.mark.slow
def test_more_lengths_than_torch_would_compile_for():
    """Prompts of up to 1,024 tokens have sixteen lengths in steps of 64; torch gives up after eight."""
    made = []

    def backend(graph, inputs):
        made.append(1)
        return graph.forward

    torch._dynamo.reset()
    model = made_model(WORDS, layers=2).eval()
    with compiled_layers(model, backend=backend), torch.no_grad():
        for length in range(4, 16):
            answer_logits(model, torch.ones(1, length, dtype=torch.int64), torch.tensor([length - 1]), (1, 2))
    assert len(made) == 12
