"""Models with names: what they are made of, where they lie, and how a name becomes a folder."""
