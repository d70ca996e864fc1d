"""EXAMPLES -> TOKEN PACKS: tokenising and packing without padding."""
