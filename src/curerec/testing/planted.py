"""Planted circuits: small Llamas whose answer is known to be carried by known modules and no other.

A scorer that does not find these finds nothing. For users' own scorers as much as for this package's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from transformers import LlamaConfig, LlamaForCausalLM

from curerec.prompts.encoding import Prompts

Kind = Literal["head", "mlp", "two_step", "and", "or"]
KINDS: tuple[Kind, ...] = ("head", "mlp", "two_step", "and", "or")

D, WIDTH, INNER, VOCABULARY, LENGTH = 32, 8, 12, 24, 8
NO, YES, OFF_A, ON_A, OFF_B, ON_B, FIRST_WORD = 0, 1, 2, 3, 4, 5, 6
# Dimensions of the residual stream with a meaning; the other ones hold what tells words apart.
SIGNAL_A, SIGNAL_B, HELD_A, HELD_B, ANSWER, ONE = range(6)
CONSTANT = 8.0  # of the dimension ONE: large, so that a signal hardly moves the norms' scale


@dataclass(frozen=True)
class Planted:
    """A model, pairs that move it, and what carries its answer.

    Attributes:
        kind: ``head``: one head; ``mlp``: one MLP; ``two_step``: a head, then an MLP; ``and``, ``or``: two
            heads and the MLP that joins them (patching one head of ``and`` takes all away, of ``or`` next to
            nothing).
        model: Llama in eval mode; every other module writes exactly nothing.
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
    two answer rows of the output embedding.

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
    member = np.asarray([name in truth.modules for name in names])
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
    """Check a scorer on planted circuits: all other modules score nothing, so every planted one comes first.

    Args:
        scorer: called as ``scorer(model, clean, corrupt, answers, **options)``; gives an object with
            ``names`` and ``values`` [n, modules].
        seeds: models of each kind.
        kinds: of circuits.
        options: of the scorer.

    Raises:
        AssertionError: it ranks a module that writes nothing before one that carries the answer.
    """
    for kind in kinds:
        for seed in range(seeds):
            truth = planted(kind, seed=seed)
            found = scorer(truth.model, truth.clean, truth.corrupt, truth.answers, **options)
            result = recovery(truth, found.names, np.asarray(found.values))
            assert result.auroc == 1.0, f"{kind}, seed {seed}: AUROC {result.auroc:.3f}"
            assert result.others < 1e-4, f"{kind}, seed {seed}: a silent module scores {result.others:.1e}"


def _silent_model(layers: int, heads: int, length: int, rng: np.random.Generator) -> Any:
    """A Llama with random readers whose modules write nothing."""
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
                p.copy_(torch.from_numpy(0.3 * rng.normal(size=p.shape)))
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        tokens = model.model.embed_tokens.weight
        tokens[:, [SIGNAL_A, SIGNAL_B, HELD_A, HELD_B, ANSWER]] = 0
        tokens[:, ONE] = CONSTANT
        for token, dim, value in (
            (OFF_A, SIGNAL_A, -1), (ON_A, SIGNAL_A, 1), (OFF_B, SIGNAL_B, -1), (ON_B, SIGNAL_B, 1)
        ):  # fmt: skip
            tokens[token, dim] = value
        model.lm_head.weight.zero_()
        model.lm_head.weight[YES, ANSWER], model.lm_head.weight[NO, ANSWER] = 2, -2
    return model


def _scale(model: Any) -> float:
    """Root mean square of a typical residual stream, by which its norms divide."""
    return float(model.model.embed_tokens.weight.square().mean(1).sqrt().mean())


def _plant_head(model: Any, layer: int, head: int, signal: int, target: int, length: int) -> None:
    """Make a head write the mean of a signal over all positions, times their number, to a dimension."""
    attention = model.model.layers[layer].self_attn
    rows = slice(head * WIDTH, (head + 1) * WIDTH)
    for p in (attention.q_proj, attention.k_proj, attention.v_proj):
        p.weight[rows] = 0
    attention.v_proj.weight[head * WIDTH, signal] = 1
    attention.o_proj.weight[target, head * WIDTH] = length * _scale(model)


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
