"""What sources write differently met with what readers pull, on the way of one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from curerec.circuits.activations import Activations, recomputing
from curerec.circuits.wiring import INPUT, NormAt, Wiring, weight_of
from curerec.recommender.score import wide

#: Bytes of expanded sources and readers that a CPU is given at a time: so much stays in its cache.
CACHED = 8 * 2**20
#: Rows (examples times positions) of a matrix product below which its weights cost more than it.
LEAST_ROWS = 192


@dataclass(frozen=True)
class Answer:
    """The answer positions of a batch, int64 [batch].

    What the last layer's queries and MLP read, and the logits, counts there alone: at other positions their
    gradient is 0.
    """

    last: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, pos, ...] at the answer, [batch, 1, ...]; what is that already stays so."""
        return x if x.shape[1] == 1 else x[torch.arange(len(x), device=x.device), self.last][:, None]


class Workspace:
    """Memory for what sources write and readers pull, taken once and used again layer by layer.

    On a CPU the pages of a new tensor of this size cost more than the product that fills it.
    """

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def of(self, name: str, first: int, like: torch.Tensor) -> torch.Tensor:
        """[first, *like's shape] of like's type, with whatever was there before under this name."""
        held, size = self._held.get(name), first * like.numel()
        if held is None or held.numel() < size or held.dtype != like.dtype or held.device != like.device:
            self._held.pop(name, None)
            held = self._held[name] = like.new_empty(size)
        return held[:size].view(first, *like.shape)


def pieces(x: torch.Tensor, size: int) -> Iterator[slice]:
    """Examples in pieces such that ``size`` tensors like theirs fit a CPU's cache; all at once elsewhere.

    Args:
        x: [batch, pos, d_model].
        size: how many of its shape are made.
    """
    step = max(len(x), 1)
    if x.device.type == "cpu" and x.numel():
        each = size * x[0].numel() * x.element_size()
        step = max(1, CACHED // each, LEAST_ROWS // x.shape[1])
    for start in range(0, len(x), step):
        yield slice(start, start + step)


@dataclass(frozen=True)
class Pulling:
    """Readers of one kind, and what they pull by; see :meth:`curerec.circuits.wiring.NormAt.pulled_through`.

    Attributes:
        place: among all readers.
        grad: at what they make of their input, [batch, pos, readers, width].
        maps: of :meth:`curerec.circuits.wiring.NormAt.read_by`, [readers, width, d_model].
    """

    place: slice
    grad: torch.Tensor
    maps: torch.Tensor


@contextmanager
def taps(
    wiring: Wiring,
    deltas: Activations,
    total: torch.Tensor,
    answer: Answer,
    *,
    fixed_scale: bool,
    lean: bool,
) -> Iterator[None]:
    """Forward hooks that leave gradient hooks on everything readers take in; these add to ``total``.

    Args:
        wiring: of the model.
        deltas: differences by site, complete when the backward pass begins; see :func:`written`.
        total: scores, [batch, sources, readers].
        answer: positions whose margin is taken.
        fixed_scale: norms are read through with their scale a constant (``relp``).
        lean: the pass is cut by :func:`curerec.circuits.passes.at_answer`.

    A layer's readers are met with the sources below it when the gradient at its attention's norm is complete,
    which is after those of its queries, keys, values and MLP: all in one product a source layer, so that what
    heads write is expanded once a layer of readers.
    """
    grads: dict[tuple[int, str], torch.Tensor] = {}
    posts: dict[int, NormAt] = {}
    top, space = len(wiring.layers) - 1, Workspace()

    def meet(places: list[slice], readers: torch.Tensor, columns: range, rows: slice, *, there: bool) -> None:
        """Add <source, reader> for sources of ``columns``, examples of ``rows``.

        ``there``: at the answer, as the readers are.
        """
        pulled = readers.flatten(2).permute(1, 2, 0)
        for at, sources in written(wiring, deltas, posts, columns, space, rows, answer if there else None):
            product = torch.bmm(sources.flatten(2).transpose(0, 1), pulled)
            first = 0
            for place in places:
                size = place.stop - place.start
                total[rows, at, place] += product[:, :, first : first + size]
                first += size

    def pulling_of(k: int, kinds: str, at: NormAt, *, there: bool) -> list[Pulling]:
        found = []
        for reading in wiring.layers[k].readings:
            parts = [p for p in reading.parts if p[0] in kinds and (k, p[0]) in grads]
            if not parts:  # ``relp`` sends nothing through queries and keys
                continue
            weight = weight_of(reading.module)
            for kind, first, heads in parts:
                grad = grads.pop((k, kind))
                grad = wide(answer.of(grad) if there else grad).unflatten(-1, (heads, -1))
                rows = weight[first : first + heads * wiring.width].unflatten(0, (heads, wiring.width))
                found.append(Pulling(wiring.columns(k, kind), grad, at.read_by(rows)))
        return found

    def attention_ready(k: int, at: NormAt) -> Callable[[torch.Tensor], None]:
        def meet_all(kinds: str, below: range, *, mlp: bool, there: bool) -> None:
            norm = at.at(answer.of) if there else at
            found = pulling_of(k, kinds, norm, there=there)
            places = [pulling.place for pulling in found]
            read = grads.pop((k, "mlp read")) if mlp else None
            if read is not None:
                places.append(slice(wiring.mlp_reader(k), wiring.mlp_reader(k) + 1))
            size = sum(p.stop - p.start for p in places)
            for rows in pieces(norm.x, size + wiring.n_heads + 1):
                part = norm.at(itemgetter(rows))
                out, first = space.of("readers", size, part.x), 0
                for pulling in found:
                    after = first + pulling.place.stop - pulling.place.start
                    part.pulled_through(pulling.grad[rows], pulling.maps, out=out[first:after])
                    first = after
                if read is not None:
                    out[-1] = read[rows]
                meet(places, out, below, rows, there=there)

        def hook(_: torch.Tensor) -> None:
            below = range(wiring.sources_before(wiring.readers[wiring.columns(k, "q").start]))
            if k < top:
                meet_all("qkv", below, mlp=True, there=False)
            else:
                meet_all("kv", below, mlp=False, there=False)
                meet_all("q", below, mlp=True, there=True)

        return hook

    def mlp_ready(k: int, at: NormAt) -> Callable[[torch.Tensor], None]:
        def hook(_: torch.Tensor) -> None:
            grad, norm = wide(grads.pop((k, "mlp"))), at
            if k == top:
                grad, norm = answer.of(grad), at.at(answer.of)
            read = grads[k, "mlp read"] = norm.pulled(grad)
            if not wiring.parallel:  # its own layer's heads alone; the sources below meet it with the others
                heads, place = wiring.head_columns(k), wiring.mlp_reader(k)
                for rows in pieces(read, wiring.n_heads + 1):
                    meet(
                        [slice(place, place + 1)],
                        read[None, rows],
                        range(heads.start, heads.stop),
                        rows,
                        there=k == top,
                    )

        return hook

    def logits_ready(grad: torch.Tensor) -> None:
        place = slice(len(wiring.readers) - 1, len(wiring.readers))
        read = answer.of(wide(grad))
        for rows in pieces(read, wiring.n_heads + 2):
            meet([place], read[None, rows], range(len(wiring.sources)), rows, there=True)

    def at_norm(ready: Any, k: int) -> Any:
        def hook(norm: Any, args: Any) -> None:
            # Where the last layer is cut, keys and values are read everywhere, then all else at the answer.
            there = args[0].shape[1] == 1
            if recomputing() or (k == top and lean and there == (ready is attention_ready)):
                return
            args[0].register_hook(ready(k, NormAt.of(norm, args[0], fixed_scale=fixed_scale)))

        return hook

    def at_reading(k: int, reading: Any) -> Any:
        def hook(module: Any, args: Any, y: torch.Tensor) -> None:
            # Where the last layer is cut, it hands out keys and values first, then queries at the answer.
            kinds = "qkv" if k < top or not lean else "q" if y.shape[1] == 1 else "kv"
            parts = [part for part in reading.parts if part[0] in kinds]

            def store(grad: torch.Tensor) -> None:
                for kind, first, heads in parts:
                    grads[k, kind] = grad[..., first : first + heads * wiring.width]

            if parts and y.requires_grad and not recomputing():
                y.register_hook(store)

        return hook

    def at_mlp(k: int) -> Any:
        def hook(module: Any, args: Any) -> Any:
            x = args[0].view_as(args[0])  # a tensor of its own: the norm's output may have other readers
            if not recomputing():
                x.register_hook(lambda grad: grads.__setitem__((k, "mlp"), grad))
            return (x, *args[1:])

        return hook

    def at_post(k: int) -> Any:
        def hook(norm: Any, args: Any) -> None:
            if not recomputing():
                posts[k] = NormAt.of(norm, args[0], fixed_scale=fixed_scale)

        return hook

    with ExitStack() as stack:

        def add(handle: Any) -> None:
            stack.callback(handle.remove)

        for k, layer in enumerate(wiring.layers):
            # Where both read through one norm the MLP's gradient is to be there first.
            add(layer.mlp_norm.register_forward_pre_hook(at_norm(mlp_ready, k)))
            add(layer.attention_norm.register_forward_pre_hook(at_norm(attention_ready, k)))
            for reading in layer.readings:
                add(reading.module.register_forward_hook(at_reading(k, reading)))
            add(layer.mlp.register_forward_pre_hook(at_mlp(k)))
            if layer.post is not None:
                add(layer.post.register_forward_pre_hook(at_post(k)))
        add(
            wiring.final_norm.register_forward_pre_hook(
                lambda norm, args: (args[0].register_hook(logits_ready), None)[1]
            )
        )
        yield


def written(
    wiring: Wiring,
    deltas: Activations,
    posts: dict[int, NormAt],
    columns: range,
    space: Workspace,
    rows: slice = slice(None),
    answer: Answer | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """What sources write differently, a layer's heads and MLP at a time.

    Args:
        wiring: of the model.
        deltas: differences by site; of the last layer at the answer alone, [batch, 1, ...].
        posts: norms that what heads write passes through, by layer.
        columns: places of the sources that are wanted; of a layer all heads or none.
        space: where it is put: what is yielded is overwritten by what comes next.
        rows: examples that are wanted.
        answer: given: what they write there alone.

    Yields:
        Places of some of the sources, and [sources, batch, pos, d_model] in at least single precision.
    """

    def take(x: torch.Tensor) -> torch.Tensor:
        return (answer.of(x) if answer else x)[rows]

    if 0 in columns:
        yield slice(0, 1), wide(take(deltas[INPUT]))[None]
    for k, layer in enumerate(wiring.layers):
        heads, mlp = wiring.head_columns(k), wiring.mlp_column(k)
        with_heads, with_mlp = heads.start in columns, mlp in columns
        if not with_heads and not with_mlp:
            continue
        wrote = wide(take(deltas[f"layers.{k}.mlp"]))
        n = wiring.n_heads if with_heads else 0
        out = space.of("sources", n + with_mlp, wrote)
        if with_heads:
            weight = weight_of(layer.attention_out).unflatten(1, (n, wiring.width))
            z = wide(take(deltas[f"layers.{k}.attn"])).unflatten(-1, (n, wiring.width))
            flat = out[:n].flatten(1, 2)
            torch.bmm(z.flatten(0, 1).transpose(0, 1), weight.permute(1, 2, 0), out=flat)
            if k in posts:
                out[:n] = posts[k].at(take).pushed(out[:n])
        if with_mlp:
            out[n] = wrote
        yield slice(heads.start if with_heads else mlp, mlp + 1 if with_mlp else heads.stop), out
