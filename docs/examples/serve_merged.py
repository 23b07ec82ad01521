"""Merge the committed adapter into its base and serve it with plain transformers.

python serve_merged.py STORE BASE MERGED
"""

import sys
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def merge(store, base, target):
    """Write base and adapter as one model to TARGET/<content hash>; returns that folder.

    The folder bears the adapter's name, so that merged copies of older versions are found and removed by it.
    """
    folder = (Path(store) / "current").resolve()
    out = Path(target) / folder.name
    model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, local_files_only=True)
    model = PeftModel.from_pretrained(model, folder, local_files_only=True).merge_and_unload()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(out)
    return out


if __name__ == "__main__":
    print(merge(*sys.argv[1:4]))
