"""PACKS -> LOGITS: BERT (the encoder), Predict (the heads), and which parameters are trained."""

import os

# torch and oneDNN keep a kernel for each shape they ever met, up to 1,024 of them: with packs of any number of tokens
# that is gigabytes. They read these limits when they first compute; the user's own values are left alone.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "32")
