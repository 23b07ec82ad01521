"""What the jobs of a benchmark share: data, originals, requests and yardsticks, each opened or made once."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from curerec.bench import artefacts as kept
from curerec.bench.plan import Job
from curerec.bench.recipe import BenchRecipe
from curerec.bench.shapes import made_shape
from curerec.data.fetch import DATASETS, load
from curerec.evaluation import METRICS, reused
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.residual import Reference
from curerec.evaluation.scene import PARTS, Ground
from curerec.interactions import Interactions
from curerec.measure import ground_of
from curerec.models import base_folder, device
from curerec.opened import Opened
from curerec.progress import Clock, Reporter, Silent
from curerec.prompts.encoding import Encoder, queries
from curerec.recipe import Recipe
from curerec.recommender import storage
from curerec.recommender.stored_answers import SAMPLED
from curerec.records import ForgetRequest, ForgetSplit
from curerec.splitting import drawn_request, granted


@dataclass
class Materials:
    """The recipe, where to write, and what was opened last.

    Attributes:
        recipe: of the run.
        out: folder of the run.
        places: where data sets are that their names do not find.
        shared: whether others work on the same machine.
        cache: of the user.
        reporter: told of stages.
    """

    recipe: BenchRecipe
    out: Path
    places: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    cache: Path | None = None
    reporter: Reporter = field(default_factory=Silent)
    _data: dict[str, Interactions] = field(default_factory=dict)
    _last: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def data(self, name: str) -> Interactions:
        """The interactions of a data set."""
        if name not in self._data:
            place = self.places.get(name) or self.recipe.datasets[name].get("data", name)
            form = None if place in DATASETS else self.recipe.datasets[name].get("format")
            self._data = {name: load(place, cache=self.cache, format=form)}  # one at a time: they are large
        return self._data[name]

    def _base(self, job: Job, *, make: bool = False) -> Path | None:
        shape = self.recipe.models[job.model].shape
        if shape is not None:
            data, folder = self.data(job.dataset), self.out / kept.BASES / f"{shape}-{job.dataset}"
            if not folder.exists():  # one of before does not say which titles its vocabulary is of
                folder = folder.with_name(f"{folder.name}-{data.titles_digest[:12]}")
            return made_shape(shape, data.titles["title"].to_pylist(), folder)
        if make:
            recipe = self.recipe.setting(job.dataset, job.model, seed=job.seed)
            base_folder(self.data(job.dataset), recipe, cache=self.cache, clock=Clock(self.reporter))
        return None

    def _trained(self, job: Job, data: Interactions, recipe: Recipe, **retrain: Any) -> Path:
        """The folder of an original, or of a retrain, trained if it is not there."""
        return kept.trained(
            data,
            recipe,
            self.out,
            **retrain,
            base=self._base(job),
            cache=self.cache,
            reporter=self.reporter,
            shared=self.shared,
        )

    def _once(self, what: str, key: Any, make: Any) -> Any:
        """The last thing made of a kind, if it is of the same key."""
        if what not in self._last or self._last[what][0] != key:
            self._last.pop(what, None)  # first gone, then made: two do not fit where one just does
            self._last[what] = (key, make())
        return self._last[what][1]

    def _opened(self, job: Job) -> Opened:
        def make() -> Opened:
            for made_of_it in ("ground", "plain", "yardstick", "asked", "before"):
                self._last.pop(made_of_it, None)  # they hold the recommender that was open before
            gc.collect()  # tasks and their objectives, which know each other, hold it, too
            recipe = self.recipe.setting(job.dataset, job.model, ask=job.ask, seed=job.seed)
            data, base = self.data(job.dataset), self._base(job)
            folder = self._trained(job, data, recipe)
            return kept.opened_with(folder, data, recipe, base, cache=self.cache)

        opened = self._once("opened", (job.dataset, job.model, job.seed, job.request), make)
        assert isinstance(opened, Opened)
        return opened

    def _asked(self, job: Job) -> tuple[ForgetRequest, ForgetSplit]:
        def make() -> tuple[ForgetRequest, ForgetSplit]:
            opened = self._opened(job)
            request = drawn_request(opened.data, opened.recipe, opened.split)
            return request, granted(opened.data, opened.recipe, opened.split, request)

        found: tuple[ForgetRequest, ForgetSplit] = self._once(
            "asked", (job.dataset, job.model, job.seed, job.request), make
        )
        return found

    def _reference(self, job: Job, number: int) -> Path:
        opened = self._opened(job)
        return self._trained(job, opened.data, opened.recipe, without=self._asked(job)[0], number=number)

    def _ground(self, job: Job) -> Ground:
        """What metrics have in common for a request: each part is encoded once for all its cells."""
        place = (job.dataset, job.model, job.seed, job.request)
        found: Ground = self._once(
            "ground", place, lambda: ground_of(self._opened(job), self._asked(job)[1], seed=job.seed)
        )
        return found

    # The yardstick: what every cell of a request is measured with.

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts whose answers are asked for: D_f's, where only costs count, to see if anything was done."""
        return PARTS[:1] if self.recipe.costs_only else PARTS

    def _yardstick(self, job: Job) -> tuple[Candidate, dict[str, Candidate], str]:
        def make() -> tuple[Candidate, dict[str, Candidate], str]:
            opened, request = self._opened(job), self._asked(job)[0]
            assert opened.recommender.path is not None
            folders = {"original": opened.recommender.path}
            folders |= {name: self._reference(job, k) for k, name in enumerate(self.recipe.references)}
            cards = {name: storage.read_card(folder) for name, folder in folders.items()}
            about = {name: card["weights_sha256"] for name, card in cards.items()}
            about |= {"request": request.digest, kept.EXAMPLES: self._examples(job)}
            about |= _answering(opened)
            name = f"{kept.digest(about)[:16]}.safetensors"
            path = self.out / kept.YARDSTICKS / name
            # Beside the name, which would else be another one than that of the same models' yardstick before.
            about[kept.TITLES] = opened.data.titles_digest
            arrays = kept.read_arrays(path, about)
            models = {
                n: Candidate(
                    None,
                    card["train_time_s"],
                    card["train_time_s"],
                    _trainable(opened),
                    forward_equivalents=self._passes(job, original=n == "original"),
                    timed_on=card.get("timed_on") or {},
                )
                for n, card in cards.items()
            }
            if arrays is None:
                ground = self._ground(job)
                arrays = {}
                for n, one in models.items():
                    one.model = self._model_of(job, folders[n])
                    arrays |= {f"{n}/{p}": ground.logits(one, p) for p in self.parts}
                    one.model = None
                kept.write_arrays(path, arrays, about)
            for n, one in models.items():
                one.logits = {p: arrays[f"{n}/{p}"] for p in self.parts}
                one.memory = dict(one.logits)
            return models.pop("original"), models, name

        found: tuple[Candidate, dict[str, Candidate], str] = self._once(
            "yardstick", (job.dataset, job.model, job.seed, job.request), make
        )
        return found

    def _examples(self, job: Job) -> str:
        """sha256 of the examples of all parts, and of what some of them are as tokens.

        Which are asked about, and how, is settled by more than the models.
        """
        split, found, opened = self._asked(job)[1], hashlib.sha256(), self._opened(job)
        recommender, titles = opened.recommender, opened.data.titles["title"].to_pylist()
        encoder = Encoder(recommender.tokenizer, recommender.template, titles)
        some = split.forget.take(np.arange(min(SAMPLED, len(split.forget))))
        found.update(np.ascontiguousarray(encoder.encode(queries(opened.data, some)).ids, "<i8").tobytes())
        for part in self.parts:
            examples = getattr(split, part)
            found.update(f"{part} {examples.history.shape}".encode())
            found.update(np.ascontiguousarray(examples.target).tobytes())
            found.update(np.ascontiguousarray(examples.history).tobytes())
        return found.hexdigest()

    def _passes(self, job: Job, *, original: bool) -> float:
        """Forward-equivalents of a training, as :class:`curerec.evaluation.cost.Meter` would count them."""
        split = self._asked(job)[1]
        prompts = len(split.retain) + (len(split.forget) if original else 0)
        return 3 * self._opened(job).recipe.model.tuning.epochs * prompts

    def _model_of(self, job: Job, folder: Path) -> Any:
        """The model of an original or of a retrain; the original's is at hand."""
        opened = self._opened(job)
        if folder == opened.recommender.path:
            return opened.recommender.model
        return storage.load(folder, opened.base, device=device()).model

    @contextmanager
    def _yardstick_models(self, job: Job) -> Iterator[None]:
        """Original and retrains as models, for attacks, which fine-tune or round them, too.

        They are at hand for no longer than that: a method that ran beside them would be seen to need their
        memory, and on a GPU might not find its own.
        """
        opened = self._opened(job)
        original, references, _ = self._yardstick(job)
        try:
            original.model = opened.recommender.model
            for k, name in enumerate(self.recipe.references):
                references[name].model = self._model_of(job, self._reference(job, k))
            self._take_up(job)
            yield
        finally:
            for one in (original, *references.values()):
                one.let_go()

    # What attacks find of original and retrains: the same for every cell, whichever process measures it.

    def _found_by_attacks(self, job: Job) -> tuple[Path, dict[str, str]]:
        """File of what the recipe's columns found of a request's original and retrains, and what it is of."""
        recipe = self._opened(job).recipe
        about = {
            "yardstick": self._yardstick(job)[2],
            "columns": json.dumps({name: METRICS[name].version for name in sorted(self.recipe.columns)}),
            "tuning": json.dumps(recipe.model.tuning.model_dump(mode="json"), sort_keys=True),
            "seed": str(job.seed),
        }
        return self.out / kept.YARDSTICKS / f"{kept.digest(about)[:16]}.safetensors", about

    def _keep_found(self, job: Job) -> None:
        """Write down what all columns, asked of the original, found of it and of the retrains."""
        path, about = self._found_by_attacks(job)
        original, references, _ = self._yardstick(job)
        arrays = {
            f"{n}/{key}": array
            for n, one in {"original": original, **references}.items()
            for key, array in reused.found(one).items()
        }
        kept.write_arrays(path, arrays, about)

    def _take_up(self, job: Job) -> None:
        """Read that back; what is not there is found again."""
        path, about = self._found_by_attacks(job)
        original, references, _ = self._yardstick(job)
        arrays = kept.read_arrays(path, about) or {}
        for n, one in {"original": original, **references}.items():
            own = {k.removeprefix(f"{n}/"): a for k, a in arrays.items() if k.startswith(f"{n}/")}
            reused.take_up(one, original, own, seed=job.seed)

    def _scale(self, job: Job) -> dict[str, Any]:
        """Floor and ceiling on D_f, and whether methods may be ranked by them."""
        original, references, _ = self._yardstick(job)
        if len(references) < 2:
            return {"floor": None, "ceiling": None, "rankable": None}
        yes = [p_yes(one.logits["forget"]) for one in references.values()]
        scale = Reference(np.stack(yes), p_yes(original.logits["forget"]))
        return {"floor": scale.floor, "ceiling": scale.ceiling, "rankable": scale.rankable}


def _answering(opened: Opened) -> dict[str, str]:
    """Type of the weights and kind of device that answers are of; nothing of float32 on a CPU.

    The same folder answers in bfloat16 on a GPU, and beside float32 answers of the original everything would
    count as changed.
    """
    weight = opened.recommender.model.get_input_embeddings().weight
    found = {"type": str(weight.dtype).removeprefix("torch."), "device": weight.device.type}
    return {} if found == {"type": "float32", "device": "cpu"} else found


def _trainable(opened: Opened) -> int:
    """Parameters that fine-tuning changed: the adapter's, or all."""
    model = opened.recommender.model
    lora = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    return lora or sum(p.numel() for p in model.parameters())
