"""Planted circuits: small Llamas whose answer is known to be carried by known modules and no other.

A scorer that does not find these finds nothing. For users' own scorers as much as for this package's.

From outside all modules look alike: each writes random vectors, as large as what the circuit writes and
different between the two prompts of a pair, to dimensions of the residual stream that no planted module and
no answer reads. So neither the size of a write, nor that of its change, nor that of weights tells the
circuit. What those vectors do to the answer through the norms' scale is kept below 1e-5 of the whole by one
large constant dimension, beside which they do not count: with writes of some 100 and a constant of 1e5 the
scale changes by a millionth.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from transformers import LlamaConfig, LlamaForCausalLM

from curerec.circuits.patching import exact
from curerec.prompts.encoding import Prompts

Kind = Literal["head", "mlp", "two_step", "and", "or"]
KINDS: tuple[Kind, ...] = ("head", "mlp", "two_step", "and", "or")

D, WIDTH, INNER, VOCABULARY, LENGTH = 32, 8, 12, 24, 8
NO, YES, OFF_A, ON_A, OFF_B, ON_B, FIRST_WORD = 0, 1, 2, 3, 4, 5, 6
# Dimensions of the residual stream with a meaning; then 14 that tell words apart, and what nobody reads.
SIGNAL_A, SIGNAL_B, HELD_A, HELD_B, ANSWER, ONE = range(6)
IDLE = slice(20, D)
CONSTANT = 1e5  # of the dimension ONE: so large that nothing else moves the norms' scale
#: Bounds of what a module outside the circuit may score, relative to the largest score, and of a planted
#: module's score as a multiple of its exact effect: ``relp`` gives a gate's signal half, and the slope of an
#: AND gate is twice what one of its arms does.
SILENT, LEAST, MOST = 1e-4, 0.4, 2.5
COUNTS = 0.1  # of the largest exact effect: below it a module's score has no size to be held to


@dataclass(frozen=True)
class Planted:
    """A model, pairs that move it, and what carries its answer.

    Attributes:
        kind: ``head``: one head; ``mlp``: one MLP; ``two_step``: a head, then an MLP; ``and``, ``or``: two
            heads and the MLP that joins them (patching one head of ``and`` takes all away, of ``or`` next to
            nothing).
        model: Llama in eval mode; every other module writes what nothing planted and no answer reads.
        base_state: weights before the circuit was planted, for the scorer ``adapter``.
        clean, corrupt: aligned prompts, [n]; the signals are on in ``clean`` and off in ``corrupt``.
        answers: token ids of (no, yes).
        modules: names of the modules of the circuit.
        edges: ``source->reader`` of its edges.
    """

    kind: Kind
    model: Any
    base_state: dict[str, torch.Tensor]
    clean: Prompts
    corrupt: Prompts
    answers: tuple[int, int]
    modules: frozenset[str]
    edges: frozenset[str]


@dataclass(frozen=True)
class Recovery:
    """How well scores or a selection recover a planted circuit.

    Attributes:
        auroc: of |mean score| for telling the circuit's modules from the others.
        others: largest |score| of any module that is not in the circuit, relative to the largest of all.
        precision, recall: of the selected modules.
    """

    auroc: float
    others: float
    precision: float
    recall: float


def planted(
    kind: Kind, *, seed: int = 0, layers: int = 3, heads: int = 4, pairs: int = 12, length: int = LENGTH
) -> Planted:
    """Plant a circuit at places drawn by ``seed``.

    The signal is a token (``ON`` or ``OFF``) whose embedding holds +1 or -1 in a dimension of its own, early
    in the prompt (for ``mlp`` at its end). A planted head attends evenly and writes the signal, held at 1, to
    the last position; a planted MLP reads held signals there and writes the answer. Nothing else reaches the
    two answer rows of the output embedding, but for less than 1e-5 of the margin through the norms' scale.

    Args:
        kind: see :class:`Planted`.
        seed: of places, words and the weights of what is not planted.
        layers, heads: of the model.
        pairs: number of prompts.
        length: tokens of a prompt.
    """
    rng = np.random.default_rng([seed, KINDS.index(kind), 61])
    model = _silent_model(layers, heads, length, rng)
    base = {k: v.clone() for k, v in model.state_dict().items()}
    layer = int(rng.integers(layers))
    last = int(rng.integers(layer, layers))
    first, second = (int(h) for h in rng.permutation(heads)[:2])
    step = f"layers.{last}.mlp"
    with torch.no_grad():
        if kind == "mlp":
            _plant_mlp(model, last, reads=(SIGNAL_A,), gates=((1.0, None),))
            modules, edges = {step}, {f"input->{step}", f"{step}->logits"}
        else:
            plants = {first: (SIGNAL_A, HELD_A)} | (
                {second: (SIGNAL_B, HELD_B)} if kind in ("and", "or") else {}
            )
            modules, edges = set(), set()
            for head, (signal, held) in plants.items():
                _plant_head(model, layer, head, signal, ANSWER if kind == "head" else held, length)
                name = f"layers.{layer}.head.{head}"
                modules.add(name)
                target = "logits" if kind == "head" else step
                edges |= {f"input->layers.{layer}.kv.{head}.v", f"{name}->{target}"}
            if kind != "head":
                gates = {"two_step": ((1.0, None),), "and": ((1.0, -1.0),), "or": ((1.0, 1.5), (-1.0, 0.5))}
                _plant_mlp(model, last, reads=(HELD_A, HELD_B)[: len(plants)], gates=gates[kind])
                modules.add(step)
                edges.add(f"{step}->logits")
    clean, corrupt = _pairs(kind, pairs, length, rng)
    return Planted(kind, model, base, clean, corrupt, (NO, YES), frozenset(modules), frozenset(edges))


def recovery(
    truth: Planted, names: Sequence[str], scores: np.ndarray, selected: Collection[str] = ()
) -> Recovery:
    """Hold scores and a selection against the planted circuit.

    Args:
        truth: from :func:`planted`.
        names: of the scored modules, [modules].
        scores: per example, [n, modules].
        selected: names of the modules chosen.
    """
    size = np.abs(scores.mean(0))
    member = np.asarray([name in truth.modules for name in names], dtype=bool)
    chosen = set(selected)
    hit = len(chosen & truth.modules)
    return Recovery(
        auroc=float(roc_auc_score(member, size)),
        others=float(np.abs(scores[:, ~member]).max() / max(np.abs(scores).max(), 1e-30)),
        precision=hit / max(len(chosen), 1),
        recall=hit / len(truth.modules),
    )


def check_scorer(
    scorer: Callable[..., Any], *, seeds: int = 20, kinds: Sequence[Kind] = KINDS, **options: Any
) -> None:
    """Check a scorer on planted circuits: every planted module comes first, the others score nothing.

    A planted module whose exact effect is at least a tenth of the largest must score with the sign of that
    effect, and between :data:`LEAST` and :data:`MOST` times as much.

    Args:
        scorer: called as ``scorer(model, clean, corrupt, answers, **options)``; gives an object with
            ``names`` and ``values`` [n, modules], in logits.
        seeds: models of each kind.
        kinds: of circuits.
        options: of the scorer.

    Raises:
        AssertionError: it ranks a module that does nothing for the answer before one that carries it, gives
            one more than :data:`SILENT` of the largest score, or scores a planted one with the wrong sign or
            size.
    """
    for kind in kinds:
        for seed in range(seeds):
            truth = planted(kind, seed=seed)
            found = scorer(truth.model, truth.clean, truth.corrupt, truth.answers, **options)
            values, at = np.asarray(found.values), f"{kind}, seed {seed}"
            result = recovery(truth, found.names, values)
            assert result.auroc > 1 - 1e-9, f"{at}: AUROC {result.auroc:.3f}"
            assert result.others < SILENT, f"{at}: a silent module scores {result.others:.1e} of the largest"
            effect = exact(
                truth.model, truth.clean, truth.corrupt, truth.answers, sorted(truth.modules)
            ).mean(0)
            for name, want in zip(sorted(truth.modules), effect, strict=True):
                if abs(want) >= COUNTS * np.abs(effect).max():
                    ratio = float(values[:, list(found.names).index(name)].mean() / want)
                    assert ratio > 0, f"{at}: {name} has the wrong sign"
                    assert LEAST <= ratio <= MOST, f"{at}: {name} scores {ratio:.2f} times its exact effect"


def _silent_model(layers: int, heads: int, length: int, rng: np.random.Generator) -> Any:
    """A Llama with random readers whose modules write where nobody reads."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=WIDTH,
        max_position_embeddings=length,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.copy_(torch.from_numpy(rng.normal(size=p.shape)))
        tokens = model.model.embed_tokens.weight
        tokens[:, [SIGNAL_A, SIGNAL_B, HELD_A, HELD_B, ANSWER]] = 0
        tokens[:, IDLE] = 0
        tokens[:, ONE] = CONSTANT
        for token, dim, value in (
            (OFF_A, SIGNAL_A, -1), (ON_A, SIGNAL_A, 1), (OFF_B, SIGNAL_B, -1), (ON_B, SIGNAL_B, 1)
        ):  # fmt: skip
            tokens[token, dim] = value
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for p in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                p.weight *= 0.3 * _scale(model)  # of the residual stream itself, before its norm
                p.weight[:, ONE] = 0
                p.weight[:, IDLE] = 0  # or writes would grow from layer to layer
            for p in (attention.o_proj, mlp.down_proj):
                p.weight *= 2
                p.weight[: IDLE.start] = 0
        model.lm_head.weight.zero_()
        model.lm_head.weight[YES, ANSWER] = 2 * _scale(model)
        model.lm_head.weight[NO, ANSWER] = -2 * _scale(model)
    return model


def _scale(model: Any) -> float:
    """Root mean square of a residual stream, by which its norms divide."""
    return float(model.model.embed_tokens.weight.square().mean(1).sqrt().mean())


def _plant_head(model: Any, layer: int, head: int, signal: int, target: int, length: int) -> None:
    """Make a head write the mean of a signal over all positions, times their number, to a dimension."""
    attention = model.model.layers[layer].self_attn
    rows = slice(head * WIDTH, (head + 1) * WIDTH)
    for p in (attention.q_proj, attention.k_proj):
        p.weight[rows] = 0
    attention.v_proj.weight[head * WIDTH] = 0  # its other values are written for nothing, as all heads' are
    attention.v_proj.weight[head * WIDTH, signal] = _scale(model)
    attention.o_proj.weight[target, head * WIDTH] = length


def _plant_mlp(
    model: Any, layer: int, *, reads: Sequence[int], gates: Sequence[tuple[float, float | None]]
) -> None:
    """Make an MLP write gates of the sum of some dimensions to the answer.

    Each gate is (sign, shift): sign * SiLU(6 (sum + shift)) / 6, or the sum itself where the shift is None.
    """
    mlp, scale = model.model.layers[layer].mlp, _scale(model)
    steep = 6.0
    for p in (mlp.gate_proj, mlp.up_proj):
        p.weight[: len(gates)] = 0
    mlp.down_proj.weight[:, : len(gates)] = 0
    for unit, (sign, shift) in enumerate(gates):
        if shift is None:  # the gate stands open
            mlp.gate_proj.weight[unit, ONE] = 10 * scale / CONSTANT
            for dim in reads:
                mlp.up_proj.weight[unit, dim] = scale
            mlp.down_proj.weight[ANSWER, unit] = sign / 10
        else:
            for dim in reads:
                mlp.gate_proj.weight[unit, dim] = steep * scale
            mlp.gate_proj.weight[unit, ONE] = steep * shift * scale / CONSTANT
            mlp.up_proj.weight[unit, ONE] = scale / CONSTANT
            mlp.down_proj.weight[ANSWER, unit] = sign / steep


def _pairs(kind: Kind, pairs: int, length: int, rng: np.random.Generator) -> tuple[Prompts, Prompts]:
    """Prompts of random words with the signals on, and the same with the signals off."""
    ids = rng.integers(FIRST_WORD, VOCABULARY, (pairs, length))
    at = rng.permuted(np.tile(np.arange(length - 1), (pairs, 1)), axis=1)
    rows = np.arange(pairs)
    ids[rows, at[:, 0] if kind != "mlp" else length - 1] = ON_A
    if kind in ("and", "or"):
        ids[rows, at[:, 1]] = ON_B
    off = np.where(ids == ON_A, OFF_A, np.where(ids == ON_B, OFF_B, ids))
    offsets = np.arange(pairs + 1, dtype=np.int64) * length
    label = np.ones(pairs, np.int8)
    spans = np.zeros((0, 5), np.int32)
    clean, corrupt = (Prompts(x.ravel().astype(np.int64), offsets, spans, label) for x in (ids, off))
    return clean, corrupt
