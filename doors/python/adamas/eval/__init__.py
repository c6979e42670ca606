"""The experiments of the paper on a model of transformers: ``python -m adamas.eval --help``.

Every policy reads the same text with the same model; the model's own full attention is always among them, and every result says how
far the others are from it.
"""
