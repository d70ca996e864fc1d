"""PACKS -> LOGITS: BERT (the encoder), Predict (the heads), and which parameters are trained."""

import os

# torch and oneDNN cache a kernel for every shape, up to 1,024 of them: with packs of any number of tokens
# that is gigabytes. They read these limits at the first computation; values set by the user are kept.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "32")
