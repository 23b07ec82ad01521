"""Is a model built as its family's file says? Held against one small forward pass when it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from curerec.errors import ModelError
from curerec.recommender.families import family_of, known_types
from curerec.recommender.families.base import KEY, QUERY, VALUE, Family, linear_of
from curerec.recommender.families.norms import is_norm, norm_parts

N_TOKENS, MIDDLE = 4, 2
NOISE = 3.0  # standard deviations added to the queries, keys or values of one head


@torch.no_grad()
def check_structure(model: Any) -> None:
    """Refuse a model whose parts are not where its family's file says they are.

    In one pass over a prompt of four tokens, in a batch whose rows differ in whose queries, keys or values
    are disturbed (a few dozen rows, whatever the number of heads):

    - every parameter of a layer belongs to a known projection or to a norm, and fused maps have the sizes
      of their parts;
    - queries of heads, disturbed at one token, move the input of the output projection at that token in the
      slices of these heads and nowhere else; keys of groups, disturbed at the first token, the slices of the
      groups' heads after that token; values, disturbed there, these slices at that token too: so each part of
      a fused map is what it is called, and slices are heads;
    - slices times their columns of the output projection, plus its bias, are the attention's output;
    - embedding (and positions) enter the first layer, each layer adds what attention and MLP write, each of
      the two reads what was there before, and the sum of all goes into the final norm;
    - every norm on that way computes ``scale (x - mean) gain + bias`` or, without the mean, an RMS norm, and
      what it gives is what queries, keys, values and the MLP read, as edge scores and ``relp`` take it.

    Args:
        model: decoder of a known family, plain or wrapped by PEFT, adapters merged or not; left as it was.

    Raises:
        ModelError: unknown ``model_type``, or one of these does not hold; the message names both.
    """
    family = family_of(model)
    _check_parameters(family, model)
    n_heads, n_kv, _ = family.heads(model)
    device = next(model.parameters()).device
    ids = (torch.arange(3, 3 + N_TOKENS, device=device) % model.config.vocab_size)[None]
    ids = ids.expand(1 + len(_sets(n_heads)) + 2 * len(_sets(n_kv)), -1)
    training = model.training
    model.eval()
    try:
        with _taps(family, model) as taps:
            family.decoder(model)(input_ids=ids, use_cache=False)
    finally:
        model.train(training)
    _check_heads(family, model, taps)
    _check_residual(family, model, taps)
    _check_norms(family, model, taps)


def _refuse(model: Any, what: str) -> ModelError:
    return ModelError(
        f"model type {model.config.model_type!r} is built in a way this package does not know: {what}",
        where="base model",
        mend=f"Use an unchanged model of one of the types {known_types()}",
    )


def _check_parameters(family: Family, model: Any) -> None:
    known = [p.path for p in family.projections.values()]
    for k, layer in enumerate(family.layer_list(model)):
        for path in known:
            try:
                layer.get_submodule(path)
            except AttributeError:
                raise _refuse(model, f"layer {k} has no {path}") from None
        for name, _ in layer.named_parameters():
            path = name.split(".base_layer.")[0].split(".lora_")[0]
            owner = path if path in known else path.rsplit(".", 1)[0]
            if owner not in known and not is_norm(layer.get_submodule(owner)):
                raise _refuse(model, f"layer {k} has a parameter {name}")
        for projection in family.projections.values():
            rows = linear_of(layer.get_submodule(projection.path)).weight.shape[1 if family.transposed else 0]
            if sum(family.part_sizes(model, projection, rows)) != rows:
                raise _refuse(model, f"layer {k} has {rows} outputs of {projection.path}")


Taps = dict[str, torch.Tensor]


@contextmanager
def _taps(family: Family, model: Any) -> Iterator[Taps]:
    """What goes through the named places during the passes inside, with some heads disturbed in each row.

    From the second row on, the input of each output projection is noted and then replaced by the first row's,
    so that no disturbance reaches the next layer and all layers are put to the test in one pass.
    """
    seen: Taps = {}
    decoder = family.decoder(model)
    n_heads, n_kv, width = family.heads(model)
    queries, groups = _sets(n_heads), _sets(n_kv)
    first = {QUERY: 1, KEY: 1 + len(queries), VALUE: 1 + len(queries) + len(groups)}
    generator = torch.Generator().manual_seed(0)

    def note_input(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            seen[name] = args[0]

        return hook

    def note_output(name: str) -> Any:
        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            seen[name] = output

        return hook

    def disturb(parts: tuple[str, ...]) -> Any:
        def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            output, start = output.clone(), 0
            for part in parts:
                sets, place = (queries, MIDDLE) if part == QUERY else (groups, 0)
                for h in range(sets.shape[1]):
                    rows = first[part] + sets[:, h].nonzero()[:, 0].to(output.device)
                    noise = torch.randn(width, generator=generator).to(output)
                    noise *= NOISE * (output[0, :, start : start + width].std() + 1e-3)
                    output[rows, place, start : start + width] += noise
                    start += width
            return output

        return hook

    def undisturbed(name: str) -> Any:
        def hook(module: Any, args: Any) -> Any:
            seen[name] = args[0]
            return (args[0][:1].expand_as(args[0]).contiguous(), *args[1:])

        return hook

    with ExitStack() as stack:

        def add(handle: Any) -> None:
            stack.callback(handle.remove)

        add(decoder.get_input_embeddings().register_forward_hook(note_output("embedding")))
        if family.positions:
            add(decoder.get_submodule(family.positions).register_forward_hook(note_output("positions")))
        final = decoder.get_submodule(family.final_norm)
        add(final.register_forward_pre_hook(note_input("final")))
        add(final.register_forward_hook(note_output("final.out")))
        for k, layer in enumerate(family.layer_list(model)):
            for name in ("attention_in", "mlp_in"):
                module = layer.get_submodule(getattr(family, name))
                add(module.register_forward_pre_hook(note_input(f"{k}.{name}")))
                add(module.register_forward_hook(note_output(f"{k}.{name}.out")))
            for name in ("attention_write", "mlp_out"):
                module = layer.get_submodule(getattr(family, name))
                add(module.register_forward_pre_hook(note_input(f"{k}.{name}.in")))
                add(module.register_forward_hook(note_output(f"{k}.{name}")))
            add(layer.get_submodule("mlp").register_forward_pre_hook(note_input(f"{k}.mlp.in")))
            out = layer.get_submodule(family.attention_out)
            add(out.register_forward_pre_hook(undisturbed(f"{k}.heads")))
            add(linear_of(out).register_forward_hook(note_output(f"{k}.attention")))
            add(out.register_forward_hook(note_output(f"{k}.attention_out")))
            for projection in family.projections.values():
                if set(projection.parts) & set(first):
                    module = layer.get_submodule(projection.path)
                    add(module.register_forward_pre_hook(note_input(f"{k}.{projection.path}.in")))
                    add(module.register_forward_hook(disturb(projection.parts)))
        yield seen


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2


def _same(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor | None = None) -> bool:
    """Equal up to rounding, token by token: the first token's state can be thousands of times the others'."""
    if a.shape != b.shape:
        return False
    dtype, a, b = a.dtype, a.double(), b.double()
    size = (b if scale is None else scale.double()).norm(dim=-1)
    return bool(((a - b).norm(dim=-1) <= _tolerance(dtype) * size + 1e-6).all())


def _sets(n: int) -> torch.Tensor:
    """Subsets such that of any two of n things one set holds the first alone, bool [sets, n].

    The binary digits of their numbers, and the complements: 2 log2(n) rows of a batch stand for n of them.
    """
    digits = torch.arange(n)[None] >> torch.arange(max(1, (n - 1).bit_length()))[:, None] & 1
    return torch.cat([digits, 1 - digits]).bool()


def _may_move(n_heads: int, n_kv: int) -> torch.Tensor:
    """Where disturbed queries, keys and values may move heads' outputs, bool [disturbed row, pos, head]."""
    heads, groups = _sets(n_heads), _sets(n_kv).repeat_interleave(n_heads // n_kv, 1)
    position = torch.arange(N_TOKENS)
    places = [(heads, position == MIDDLE), (groups, position > 0), (groups, position >= 0)]
    return torch.cat([own[:, None] & at[None, :, None] for own, at in places])


def _check_heads(family: Family, model: Any, taps: Taps) -> None:
    n_heads, n_kv, width = family.heads(model)
    allowed = _may_move(n_heads, n_kv)
    for k, layer in enumerate(family.layer_list(model)):
        x = taps[f"{k}.heads"]
        if x.ndim != 3 or x.shape[-1] != n_heads * width:
            raise _refuse(
                model, f"{family.attention_out} of layer {k} does not read {n_heads} heads of {width}"
            )
        by_head = x.double().unflatten(-1, (n_heads, width))
        change = (by_head[1:] - by_head[:1]).norm(dim=-1)  # [disturbed row, pos, head]
        size = by_head[0].norm(dim=-1).amax(0)  # heads can differ a thousandfold: each by its own measure
        moved = (change > _tolerance(x.dtype) * size + 1e-6 * size.amax()).cpu()
        if bool((moved & ~allowed).any()):
            raise _refuse(model, f"a head of layer {k} reads the queries, keys or values of another")
        values = slice(-len(_sets(n_kv)), None)
        if not bool((moved[values, 0] == allowed[values, 0]).all()):
            raise _refuse(model, f"a head of layer {k} does not write what its values say")
        linear = linear_of(layer.get_submodule(family.attention_out))
        weight = (linear.weight if family.transposed else linear.weight.T).double()
        sliced = weight.unflatten(0, (n_heads, width))
        parts = torch.einsum("thw,hwd->thd", by_head[0], sliced)
        total = parts.sum(1) if linear.bias is None else parts.sum(1) + linear.bias.double()
        attention = taps[f"{k}.attention"][0]
        if not _same(attention, total.to(attention.dtype), parts.norm(dim=1) + total.abs()):
            raise _refuse(model, f"the heads' slices of layer {k} do not sum to the attention's output")


def _check_residual(family: Family, model: Any, taps: Taps) -> None:
    taps = {name: value[0] for name, value in taps.items()}
    stream = taps["embedding"] + taps["positions"] if family.positions else taps["embedding"]
    for k in range(len(family.layer_list(model))):
        if not _same(taps[f"{k}.attention_in"], stream):
            what = "the embedding" if k == 0 else f"the writes of layer {k - 1}"
            raise _refuse(model, f"the residual stream before layer {k} is not the sum up to {what}")
        # The next step starts from the model's own stream: rounding does not pile up over the layers.
        stream = taps[f"{k}.attention_in"]
        middle = stream + taps[f"{k}.attention_write"]
        if not _same(taps[f"{k}.mlp_in"], stream if family.parallel else middle):
            raise _refuse(model, f"the MLP of layer {k} does not read the residual stream")
        stream = middle + taps[f"{k}.mlp_out"]
    if not _same(taps["final"], stream):
        raise _refuse(model, "the final norm does not read the sum of embedding and writes")


def _check_norms(family: Family, model: Any, taps: Taps) -> None:
    taps = {name: value[0] for name, value in taps.items()}
    for k, layer in enumerate(family.layer_list(model)):
        for name in ("attention_in", "mlp_in", "attention_write", "mlp_out"):
            path = getattr(family, name)
            before, after = (
                (f"{k}.{name}", f"{k}.{name}.out")
                if name.endswith("_in")
                else (f"{k}.{name}.in", f"{k}.{name}")
            )
            norm = layer.get_submodule(path)
            if (name.endswith("_in") or is_norm(norm)) and not _computes(norm, taps[before], taps[after]):
                raise _refuse(model, f"{path} of layer {k} is neither a LayerNorm nor an RMS norm")
        written = family.attention_write != family.attention_out
        if written and not _same(taps[f"{k}.attention_write.in"], taps[f"{k}.attention_out"]):
            raise _refuse(model, f"{family.attention_write} of layer {k} does not read what the heads write")
        readers = [p.path for p in family.projections.values() if {QUERY, KEY, VALUE} & set(p.parts)]
        for name, paths in (("attention_in", readers), ("mlp_in", ["mlp"])):
            for path in paths:
                if not _same(taps[f"{k}.{path}.in"], taps[f"{k}.{name}.out"]):
                    raise _refuse(
                        model, f"{path} of layer {k} does not read what {getattr(family, name)} gives"
                    )
    if not _computes(
        family.decoder(model).get_submodule(family.final_norm), taps["final"], taps["final.out"]
    ):
        raise _refuse(model, f"{family.final_norm} is neither a LayerNorm nor an RMS norm")


def _computes(norm: Any, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether the norm is the formula that circuits read through it by."""
    x = x if x.dtype == torch.float64 else x.float()
    try:
        mean, scale, gain = norm_parts(norm, x)
    except ModelError:
        return False
    want = scale * (x if mean is None else x - mean) * gain
    bias = getattr(norm, "bias", None)
    return _same(y, (want if bias is None else want + bias).to(y.dtype))
