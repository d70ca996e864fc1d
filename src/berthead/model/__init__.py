"""PACKS -> LOGITS: BERT (the encoder), Predict (the heads), and what is fitted."""
