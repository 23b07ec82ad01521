"""Serve the committed adapter with plain PEFT; no code of curerec is needed.

python serve_peft.py STORE BASE "prompt"
"""

import sys
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(store, base):
    """Model, tokenizer and name of the version in force.

    The link is resolved once: what is loaded is one version, also if `current` moves meanwhile. Its name is
    its content hash: register it under this name, never under "current", and no cache can serve an old one.
    """
    folder = (Path(store) / "current").resolve()
    model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, local_files_only=True)
    model = PeftModel.from_pretrained(model, folder, adapter_name=folder.name, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer, folder.name


if __name__ == "__main__":
    model, tokenizer, name = load(*sys.argv[1:3])
    inputs = tokenizer(sys.argv[3], return_tensors="pt")
    logits = model(input_ids=inputs["input_ids"]).logits[0, -1]
    print(name, tokenizer.decode(logits.argmax()))
