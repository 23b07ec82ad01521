"""Question 1: training tokens a second against the plain loop, transformers' Trainer and PEFT, at equal loss.

Both see the same batches in the same order; tokens are those of the prompts, not of their padding. The plain
loop is what a user would write: a right-padded batch with its mask, the two answers' loss from the model's
logits. It computes in the same types, those of the weights, and has the same malloc settings, being in the
same process (curerec.recommender.memory).
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import numpy as np
import torch
from common import alternating, done, options, write
from setting import setting

from curerec.recommender.score import score
from curerec.recommender.tune import TuneConfig, _rate, endless, tune


def plain(model: Any, prompts: Any, answers: tuple[int, int], config: TuneConfig, steps: int) -> Any:
    """Trainer over the same batches."""
    from transformers import Trainer, TrainingArguments

    stream = endless(prompts.lengths, config.batch_size, np.random.default_rng([0, 11]))
    order = [next(stream) for _ in range(steps)]

    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            for index in order:
                ids, last = prompts.padded(index)
                mask = np.arange(ids.shape[1])[None] <= last[:, None]
                yield {
                    "input_ids": torch.from_numpy(ids),
                    "attention_mask": torch.from_numpy(mask.astype(np.int64)),
                    "labels": torch.from_numpy(np.stack([last, prompts.label[index].astype(np.int64)])),
                }

    def answer_loss(outputs: Any, labels: torch.Tensor, **rest: Any) -> torch.Tensor:
        last, label = labels
        two = outputs.logits[torch.arange(len(last), device=last.device), last][:, list(answers)]
        return torch.nn.functional.cross_entropy(two.float(), label)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            learning_rate=config.lr,
            weight_decay=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            bf16=False,  # both compute in the types that the weights have
            dataloader_num_workers=0,
        )
        # The Trainer's own schedule has a first step of rate 0: with it the losses could not be compared.
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=0.0)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Batches(),
            data_collator=lambda rows: rows[0],
            compute_loss_func=answer_loss,
            optimizers=(
                optimizer,
                torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: _rate(k, steps, config)),
            ),
        )
        trainer.train()
    return model.eval()


def loss(model: Any, prompts: Any, answers: tuple[int, int]) -> float:
    """Cross-entropy over the two answers, nats."""
    logits = torch.from_numpy(score(model, prompts, answers))
    label = torch.from_numpy(prompts.label.astype(np.int64))
    return float(torch.nn.functional.cross_entropy(logits, label))


def compared(
    made: Any, seconds: dict[str, Any], models: dict[str, Any], ours: str, theirs: str, *, epochs: int = 1
) -> dict[str, Any]:
    """The values of a row that compares two ways to train on the same prompts.

    Args:
        made: from :func:`setting.setting`.
        seconds: by way, from :func:`common.alternating`.
        models: by way, what the last run ended with.
        ours, theirs: the two ways; the ratio is that of their medians, theirs first.
        epochs: passes over the prompts.
    """
    tokens = epochs * int(made.train.lengths.sum())
    return {
        "seconds": seconds,
        "tokens_per_s": {name: tokens / s["median"] for name, s in seconds.items()},
        "ratio": seconds[theirs]["median"] / seconds[ours]["median"],
        "loss_before": loss(made.model, made.train, made.answers),
        "loss_after": {name: loss(m, made.train, made.answers) for name, m in models.items()},
    }


def main() -> None:
    """Full fine-tuning and LoRA."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    steps, repeats = (2, 1) if args.tiny else (args.steps, args.repeats)
    for kind in ("full", "lora"):
        key = {"question": "training", "model": args.model, "kind": kind, "steps": steps, "batch": args.batch}
        if done(args.results, key):
            continue
        made = setting(args.model, kind, steps * args.batch)
        config = TuneConfig(epochs=1, batch_size=args.batch, lr=3e-4)
        steps = -(-len(made.train) // args.batch)
        last: dict[str, Any] = {}

        def ours(made: Any = made, config: Any = config, last: Any = last) -> None:
            last["ours"] = tune(copy.deepcopy(made.model), made.train, made.answers, config, seed=0)

        def theirs(made: Any = made, config: Any = config, last: Any = last, steps: int = steps) -> None:
            last["plain"] = plain(copy.deepcopy(made.model), made.train, made.answers, config, steps)

        seconds = alternating({"ours": ours, "plain": theirs}, repeats)
        values = compared(made, seconds, last, "ours", "plain")
        write(args.results, key, values, args.note)


if __name__ == "__main__":
    main()
