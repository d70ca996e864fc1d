"""EXAMPLES -> PREDICTIONS: reading ahead, computing, decoding, in input order."""
