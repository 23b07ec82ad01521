"""One configuration for the whole path: data, model, request, method. Each key is explained in recipes/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from curerec.config import MAX_SEED, Strict, merged, parse
from curerec.errors import ConfigError
from curerec.methods import CONTROLS, METHODS
from curerec.methods.cure.method import CureConfig
from curerec.methods.unlearn import UnlearnConfig
from curerec.recommender.bases import NANO
from curerec.recommender.runtime import RuntimeConfig
from curerec.recommender.tune import TuneConfig

#: Settings of methods, which training does not depend on.
SETTINGS = ("cure", "npo", "methods", "runtime")


class SplitConfig(Strict):
    """How interactions become examples; stored with the recommender, for a request to find the same split."""

    added = ("history",)

    kind: Literal["per-user", "e2urec"] = Field(
        "per-user",
        description="hold out each user's latest interactions, or cut all users' latest by time",
    )
    seed: int = Field(0, ge=0, le=MAX_SEED)
    control_share: float = Field(
        0.1, gt=0, lt=1, description="of the training examples, drawn at random and never trained on (D_c)"
    )
    holdout_share: float = Field(0.2, gt=0, lt=1, description="per-user only")
    public_share: float = Field(
        0.0, ge=0, lt=1, description="share of the users that only the base model is pre-trained on (nano)"
    )
    history: int | None = Field(
        None, gt=0, description="interactions that a prompt shows at most, the last ones; None: 10"
    )
    train: int | None = Field(None, gt=0, description="at most so many training examples")
    other: int | None = Field(None, gt=0, description="at most so many of control, validation and test each")


class LoraConfig(Strict):
    """Shape of the adapter."""

    added = ("layers",)

    r: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | None = Field(None, description="short projection names; None: all of the family")
    layers: int | None = Field(
        None,
        gt=0,
        description="only the last so many layers have branches: what lies below them is computed once a "
        "prompt (on the CPU); None: all",
    )


class NanoShape(Strict):
    """Size of the small Llama that the data set itself pre-trains."""

    width: int = Field(64, gt=0, description="of the residual stream")
    layers: int = Field(2, gt=0)
    heads: int = Field(4, gt=0, description="of each layer")
    mlp: int = Field(176, gt=0, description="inner width of the gated MLP")

    @model_validator(mode="after")
    def _even_heads(self) -> NanoShape:
        if self.width % (2 * self.heads):
            raise ValueError("width must be a multiple of twice the heads (rotary positions turn pairs)")
        return self


class ModelConfig(Strict):
    """Which model, and how it is fine-tuned."""

    added = ("nano", "dtype", "waypoints")

    base: str = Field("nano", description="nano, smollm2-135m, a folder, or a name on the Hugging Face hub")
    kind: Literal["full", "lora"] = "lora"
    nano: NanoShape | None = Field(None, description="size of base nano; None: 2 layers of 4 heads, width 64")
    template: str = "likes"
    lora: LoraConfig = LoraConfig()
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="of the frozen base under an adapter, whose own weights are float32; None: float32 on a "
        "CPU, bfloat16 on a GPU",
    )
    base_bits: Literal[4, 8, 16] = Field(
        16, description="of the frozen base under an adapter (QLoRA); 4 and 8 need curerec[quant]"
    )
    pretrain: TuneConfig = TuneConfig(epochs=1, batch_size=32, lr=2e-3, ema=0.99)
    tuning: TuneConfig = TuneConfig(epochs=2, batch_size=64, lr=1e-3)
    waypoints: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        description="shares of the training's steps after which the trained weights, and the root of AdamW's "
        "second moment, are kept beside the recommender: what single people wrote can be read off them "
        "(`cure.written`). Each takes twice the bytes of the trained weights. None: nothing is kept",
    )

    @model_validator(mode="after")
    def _ascending(self) -> ModelConfig:
        shares = self.waypoints or ()
        if list(shares) != sorted(set(shares)) or not all(0 < share <= 1 for share in shares):
            raise ValueError("waypoints are ascending shares of the steps, above 0 and at most 1")
        if shares and self.tuning.optimizer != "adamw":
            raise ValueError("waypoints are of AdamW")
        return self

    @model_validator(mode="after")
    def _adapter_only(self) -> ModelConfig:
        if self.base_bits != 16 and self.kind == "full":
            raise ValueError("base_bits 4 and 8 are for a frozen base: use kind lora")
        if self.dtype is not None and self.kind == "full":
            raise ValueError("dtype is of a frozen base: use kind lora")
        return self

    @model_validator(mode="after")
    def _shape_of_nano(self) -> ModelConfig:
        if self.nano is not None and self.base != NANO:
            raise ValueError("nano gives the size of base nano; other bases have their own")
        return self


class RequestConfig(Strict):
    """A request drawn for an experiment."""

    kind: Literal["users", "items", "interactions"] = "users"
    share: float = Field(0.1, gt=0, lt=1)
    choice: Literal["random", "core", "edge", "e2urec"] = Field(
        "random", description="e2urec: the training users that its experiments forget, at share 0.2"
    )

    @model_validator(mode="after")
    def _users_only(self) -> RequestConfig:
        if self.choice == "e2urec" and self.kind != "users":
            raise ValueError("choice e2urec names users")
        return self


class Recipe(Strict):
    """Data, model, request and methods of one run."""

    data: str = Field("ml-100k", description="name of a public data set, or a path")
    format: str | None = Field(None, description="reader; None: recognised from the files")
    split: SplitConfig = SplitConfig()
    model: ModelConfig = ModelConfig()
    request: RequestConfig = RequestConfig()
    cure: CureConfig = CureConfig()
    npo: UnlearnConfig = UnlearnConfig()
    methods: dict[str, dict[str, Any]] = Field(
        {},
        description="settings of methods, by name, over what they have otherwise, key by key: `cure` and its "
        "controls what `cure` says, `npo` and `ga_kl` what `npo` says, the others their defaults",
    )
    runtime: RuntimeConfig = RuntimeConfig()
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @field_validator("methods")
    @classmethod
    def _known(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        unknown = sorted(set(value) - set(METHODS))
        if unknown:
            raise ValueError(f"no method {', '.join(unknown)}")
        return value

    def seeded(self, seed: int) -> Recipe:
        """The recipe with everything drawn anew: split, base model, request, order of training."""
        split = self.split.model_copy(update={"seed": seed})
        return self.model_copy(update={"seed": seed, "split": split})

    def with_settings_of(self, other: Recipe) -> Recipe:
        """What this one was trained by, with the other's settings of methods.

        Args:
            other: read from a recipe by which nothing needs to have been trained.

        Raises:
            ConfigError: one is fully fine-tuned and the other has an adapter, whose settings are others.
        """
        if other.model.kind != self.model.kind:
            kinds = {"full": "full fine-tuning", "lora": "an adapter"}
            raise ConfigError(
                f"its settings are of {kinds[other.model.kind]}, and the recommender was trained by "
                f"{kinds[self.model.kind]}",
                where="recipe",
                mend="Choose one that extends `demo` for full fine-tuning, `lora` for an adapter",
            )
        taken = [name for name in SETTINGS if name != "runtime"]  # which is of the machine
        return self.model_copy(update={name: getattr(other, name) for name in taken})

    def config_of(self, method: str) -> Any:
        """The configuration of a method; None for one that takes none.

        Raises:
            ConfigError: the settings under ``methods`` are not the method's.
        """
        kind, settings = METHODS[method][1], self.methods.get(method)
        own = {**dict.fromkeys(("cure", *CONTROLS), self.cure), "npo": self.npo, "ga_kl": self.npo}
        base: Any = own.get(method) or (None if kind is None else kind())
        if not settings:
            return base
        where = f"recipe, methods.{method}"
        if base is None:
            raise ConfigError("takes no settings", where=where, mend="Leave them out")
        # Key by key: a teacher that is given another rate is the method's own teacher otherwise.
        return parse(type(base), merged(base.model_dump(), settings), where=where)


def recipe_of_card(card: Mapping[str, Any], *, where: str) -> tuple[Recipe, str | None]:
    """The recipe that a recommender was trained by, from its card.

    What training depended on must be readable: the split is rebuilt from it. Settings of methods, which are
    only carried along, may be of another version; then today's defaults stand, with a word on it.

    Args:
        card: of :func:`curerec.recommender.storage.read_card`.
        where: for messages.

    Returns:
        The recipe, and what is to be said about it or None.

    Raises:
        ConfigError: the part that training depended on does not fit.
    """
    try:
        return parse(Recipe, card["recipe"], where=where), None
    except ConfigError:
        kept = {name: value for name, value in card["recipe"].items() if name not in SETTINGS}
        note = f"{where}: its settings of methods are of another version; the defaults of this one are used"
        return parse(Recipe, kept, where=where), note
